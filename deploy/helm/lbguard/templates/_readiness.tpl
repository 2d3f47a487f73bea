{{/* Readiness files for the router of Meridio-2: its volume, and what guard and router get. Empty: no files. */}}

{{- define "lbguard.readiness.volume" -}}
{{- if .Values.settings.readiness.directory }}
- name: lbguard-ready
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- end }}
{{- end }}

{{- define "lbguard.readiness.guardMounts" -}}
{{- with .Values.settings.readiness }}
{{- if .directory }}
- name: lbguard-ready
  mountPath: {{ .directory }}
- name: {{ $.Values.guard.readiness.balancerVolume }}
  mountPath: {{ .balancer }}
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "lbguard.readiness.router" -}}
{{- with .Values.settings.readiness.directory }}
- name: {{ $.Values.guard.readiness.routerContainer }}
  env:
    - name: MERIDIO_READINESS_DIR
      value: {{ . }}
  volumeMounts:
    - name: lbguard-ready
      mountPath: {{ . }}
      readOnly: true
{{- end }}
{{- end }}

{{/* The router's directory is the load balancer's again. */}}
{{- define "lbguard.readiness.routerRemoved" -}}
{{- with .Values.settings.readiness }}
{{- if .directory }}
- name: {{ $.Values.guard.readiness.routerContainer }}
  env:
    - name: MERIDIO_READINESS_DIR
      value: {{ .balancer }}
  volumeMounts:
    - mountPath: {{ .directory }}
      $patch: delete
{{- end }}
{{- end }}
{{- end }}
