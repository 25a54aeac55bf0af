{{/*
The job as protobuf text, of a map of fields: their names from camelCase, all texts but two are names of enums, and whole
numbers are written without an exponent (Helm reads every number as floating-point).
*/}}
{{- define "millrace.textproto" -}}
{{- range $key, $value := . }}
{{- $field := regexReplaceAll "([A-Z])" $key "_${1}" | lower }}
{{- if kindIs "map" $value }}
{{ $field }} {
{{- include "millrace.textproto" $value | trim | nindent 2 }}
}
{{- else if kindIs "string" $value }}
{{ $field }}: {{ if has $key (list "modelName" "architecture") }}{{ $value | quote }}{{ else }}{{ $value }}{{ end }}
{{- else if kindIs "bool" $value }}
{{ $field }}: {{ $value }}
{{- else if not (kindIs "invalid" $value) }}
{{ $field }}: {{ if eq (float64 (int64 $value)) (float64 $value) }}{{ int64 $value }}{{ else }}{{ $value }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}
