{{/* The parts that all pods have. */}}

{{/* Of (dict "root" $ "component" NAME "values" .Values.COMPONENT): labels and annotations of a pod. */}}
{{- define "millrace.podMetadata" -}}
labels:
  {{- include "millrace.labels" . | nindent 2 }}
{{- with mergeOverwrite (dict) .values.podAnnotations (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Who it runs as, and where. No Service's variables: MILLRACE_... names are flags. */}}
{{- define "millrace.podSettings" -}}
serviceAccountName: {{ include "millrace.serviceAccountName" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- with .root.Values.security }}
  {{- if ne .runAsUser nil }}
  runAsUser: {{ int64 .runAsUser }}
  {{- end }}
  {{- if ne .runAsGroup nil }}
  runAsGroup: {{ int64 .runAsGroup }}
  {{- end }}
  {{- if ne .fsGroup nil }}
  fsGroup: {{ int64 .fsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "millrace.scheduling" -}}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if .root.Values.topologySpread.enabled }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ .root.Values.topologySpread.topologyKey }}
    whenUnsatisfiable: {{ .root.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "millrace.selector" . | nindent 8 }}
{{- end }}
{{- end -}}

{{- define "millrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* How a container is started and watched but for its arguments: (dict "root" $ "program" NAME "values" ...). */}}
{{- define "millrace.container" -}}
name: {{ .program }}
image: {{ include "millrace.image" (dict "root" .root "image" .values.image) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [{{ .program }}]
securityContext:
  {{- include "millrace.containerSecurity" . | nindent 2 }}
resources:
  {{- toYaml .values.resources | nindent 2 }}
# Alive is who answers, whatever its peers do. Ready is who has what it needs: its dataset, plan or version.
startupProbe:
  httpGet: {path: /healthz, port: http, scheme: {{ include "millrace.scheme" .root }}}
  periodSeconds: 1
  failureThreshold: 120
livenessProbe:
  httpGet: {path: /healthz, port: http, scheme: {{ include "millrace.scheme" .root }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http, scheme: {{ include "millrace.scheme" .root }}}
  periodSeconds: 2
  timeoutSeconds: 2
{{- end -}}

{{/* Arguments that every service takes: (dict "root" $ "http" PORT "values" ...), with "grpc" PORT if it listens. */}}
{{- define "millrace.serviceArgs" -}}
{{- if .grpc }}
- --listen={{ .root.Values.listenHost }}:{{ .grpc }}
{{- end }}
- --http-listen={{ .root.Values.listenHost }}:{{ .http }}
- --log-level={{ .root.Values.log.level }}
- --log-format={{ .root.Values.log.format }}
- --drain-grace-ms={{ mul .values.drainGraceSeconds 1000 }}
{{ include "millrace.tlsArgs" .root | default "- --insecure" }}
{{- if include "millrace.runTokenSecret" . }}
- --run-token-file=/run-token/token
{{- end }}
{{- end -}}

{{/* Nothing for plain text. */}}
{{- define "millrace.tlsArgs" -}}
{{- if include "millrace.tlsSecret" . -}}
- --tls-cert=/tls/tls.crt
- --tls-key=/tls/tls.key
- --tls-ca=/tls/ca.crt
{{- end -}}
{{- end -}}
{{- define "millrace.scheme" -}}
{{ ternary "HTTPS" "HTTP" (ne (include "millrace.tlsSecret" .) "") }}
{{- end -}}

{{/* What every service mounts: (dict "root" $ "component" NAME). */}}
{{- define "millrace.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- include "millrace.tlsMount" .root }}
{{- if include "millrace.runTokenSecret" . }}
- {name: run-token, mountPath: /run-token, readOnly: true}
{{- end }}
{{- end -}}
{{- define "millrace.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- include "millrace.tlsVolume" .root }}
{{- if include "millrace.runTokenSecret" . }}
{{ include "millrace.tokenVolume" (merge (dict "name" "run-token") .root.Values.runToken) }}
{{- end }}
{{- end -}}

{{/* The Secret with the run's token; empty for none. A model service that asks no coordinator has nobody to show it to. */}}
{{- define "millrace.runTokenSecret" -}}
{{- if not (and (eq .component "model") (eq .root.Values.model.source "volume")) -}}
{{- .root.Values.runToken.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "millrace.tlsMount" }}
{{- if include "millrace.tlsSecret" . }}
- {name: tls, mountPath: /tls, readOnly: true}
{{- end }}
{{- end -}}
{{- define "millrace.tlsVolume" }}
{{- with include "millrace.tlsSecret" . }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* Of (dict "name" VOLUME "existingSecret" SECRET "key" KEY): the file "token", and no other key of the Secret. */}}
{{- define "millrace.tokenVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .existingSecret | quote }}
    defaultMode: 0440
    items:
      - {key: {{ required (printf "the key of the Secret %s is missing" .existingSecret) .key | quote }}, path: token}
{{- end -}}
