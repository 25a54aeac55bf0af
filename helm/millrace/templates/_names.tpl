{{- define "millrace.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough for the longest ending, "-worker-01234567-63", in a DNS label of 63 characters. */}}
{{- define "millrace.fullname" -}}
{{- $name := include "millrace.name" . -}}
{{- $default := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $default | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "millrace.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "millrace.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "millrace.outputClaim" -}}
{{- .Values.parameterServer.output.existingClaim | default (printf "%s-output" (include "millrace.fullname" .)) -}}
{{- end -}}

{{/* The Secret with the certificate; empty for plain text. */}}
{{- define "millrace.tlsSecret" -}}
{{- .Values.tls.secretName | default (ternary (printf "%s-tls" (include "millrace.fullname" .)) "" .Values.tls.certManager.enabled) -}}
{{- end -}}

{{/* What other parts dial. */}}
{{- define "millrace.psDomain" -}}
{{ include "millrace.fullname" . }}-ps.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}
{{- define "millrace.coordinator" -}}
{{ include "millrace.fullname" . }}-ps-0.{{ include "millrace.psDomain" . }}:7200
{{- end -}}
{{- define "millrace.dataName" -}}
{{ include "millrace.fullname" . }}-data.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{- define "millrace.modelName" -}}
{{ include "millrace.fullname" . }}-model.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{/* Of (dict "root" $ "component" NAME): what objects are found by; never changes in the life of a release. */}}
{{- define "millrace.selector" -}}
app.kubernetes.io/name: {{ include "millrace.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: millrace
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Of (dict "root" $ "image" .Values.COMPONENT.image). */}}
{{- define "millrace.image" -}}
{{- $path := ternary (printf "%s/%s" .root.Values.image.registry .image.repository) .image.repository (ne .root.Values.image.registry "") -}}
{{- if .image.digest -}}
{{ $path }}@{{ .image.digest }}
{{- else -}}
{{ $path }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}
