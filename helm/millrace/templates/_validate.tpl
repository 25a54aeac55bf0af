{{/* What goes wrong only together, and only once it runs. */}}
{{- define "millrace.validate" -}}
{{- $output := .Values.parameterServer.output -}}
{{- $writers := and (eq $output.existingClaim "") (ne $output.accessMode "ReadWriteMany") -}}
{{- if and (gt (int .Values.parameterServer.shards) 1) $writers -}}
{{- fail (printf "parameterServer.shards is %d: all shards write into one output directory, so parameterServer.output needs accessMode ReadWriteMany or an existingClaim that has it" (int .Values.parameterServer.shards)) -}}
{{- end -}}
{{- if and .Values.model.enabled (eq .Values.model.source "volume") $writers -}}
{{- fail "model.source is volume: the model service mounts the parameter servers' output, so parameterServer.output needs accessMode ReadWriteMany or an existingClaim that has it" -}}
{{- end -}}
{{- if and (eq .Values.dataset.kind "claim") (eq .Values.dataset.claim.name "") -}}
{{- fail "dataset.kind is claim: dataset.claim.name is missing" -}}
{{- end -}}
{{- if and .Values.model.enabled (eq .Values.model.canarySet.from "dataset") (ne .Values.dataset.kind "claim") -}}
{{- fail (printf "model.canarySet.from is dataset: dataset.kind is %s, and only a claim can be mounted by the model service too" .Values.dataset.kind) -}}
{{- end -}}
{{- if and .Values.model.enabled (eq .Values.model.canarySet.from "claim") (eq .Values.model.canarySet.claim.name "") -}}
{{- fail "model.canarySet.from is claim: model.canarySet.claim.name is missing" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (eq .Values.tls.certManager.issuerRef.name "") -}}
{{- fail "tls.certManager is enabled: tls.certManager.issuerRef.name is missing" -}}
{{- end -}}
{{- if and .Values.runToken.existingSecret (not (include "millrace.tlsSecret" .)) -}}
{{- fail "runToken.existingSecret is set: a token is not sent in plain text, so tls.secretName or tls.certManager is needed" -}}
{{- end -}}
{{- if ge (int .Values.parameterServer.backupWorkers) (int .Values.worker.count) -}}
{{- fail "parameterServer.backupWorkers must be below worker.count" -}}
{{- end -}}
{{- $limits := (.Values.worker.resources).limits | default dict | keys | join " " -}}
{{- if and (hasPrefix "cuda" .Values.worker.device) (not (contains "/" $limits)) -}}
{{- fail (printf "worker.device is %s: worker.resources.limits gives the workers no GPU, as nvidia.com/gpu: 1 does" .Values.worker.device) -}}
{{- end -}}
{{- end -}}
