{{/*
A value as an expression of CEL (Common Expression Language); takes (dict "value" VALUE "type" "Object.spec.volumes"). The
type is the path of the value's field in a pod. Maps with free keys have no type of their own.
*/}}
{{- define "lbguard.cel" -}}
{{- $type := .type -}}
{{- $items := list -}}
{{- if kindIs "map" .value -}}
{{- $free := has (last (splitList "." $type)) (list "limits" "requests" "matchLabels" "labels" "annotations" "volumeAttributes" "options") -}}
{{- range $key, $value := .value -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $text := include "lbguard.cel" (dict "value" $value "type" (printf "%s.%s" $type $key)) -}}
{{- $items = append $items (printf "%s: %s" (ternary (toJson $key) (eq $key "namespace" | ternary "__namespace__" $key) $free) $text) -}}
{{- end -}}
{{- end -}}
{{- printf "%s{%s}" ($free | ternary "" $type) (join ", " $items) -}}
{{- else if kindIs "slice" .value -}}
{{- range .value }}{{ $items = append $items (include "lbguard.cel" (dict "value" . "type" $type)) }}{{ end -}}
{{- printf "[%s]" (join ", " $items) -}}
{{- else -}}
{{- toJson .value -}}
{{- end -}}
{{- end }}

{{/*
A JSON patch that puts items at the front of a list, in place of those that the list has of the same key: a value that the
pod sets itself is replaced. Takes (dict "items" ITEMS "key" "name" "of" "object.spec" "path" "\"/spec\"" "field" "volumes"
"type" "Object.spec.volumes"); `path` is an expression.
*/}}
{{- define "lbguard.celPatch" -}}
{{- $key := .key -}}
{{- $keys := list -}}
{{- range .items }}{{ $keys = append $keys (get . $key) }}{{ end -}}
[JSONPatch{
  op: "add",
  path: {{ .path }} + "/{{ .field }}",
  value: [
{{- range $index, $item := .items }}
{{- if $index }},{{ end }}
    {{ include "lbguard.cel" (dict "value" $item "type" $.type) }}
{{- end }}
  ] + (has({{ .of }}.{{ .field }}) ? {{ .of }}.{{ .field }}.filter(e, !(e.{{ .key }} in {{ toJson $keys }})) : [])
}]
{{- end }}
