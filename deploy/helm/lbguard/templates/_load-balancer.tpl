{{/* What the load balancer and the guard share, and what the load balancer's own container gets. */}}

{{/* Not empty if lbguard's nfqlb comes before the real one. */}}
{{- define "lbguard.interposes" -}}
{{- if eq .Values.settings.source "interposer" -}}yes{{- end -}}
{{- end }}

{{- define "lbguard.sharedMounts" -}}
{{- with .Values.guard.sharedMemory -}}
{{- if .enabled }}
- name: {{ default "lbguard-shm" .existingVolume }}
  mountPath: /dev/shm
{{- end }}
{{- end }}
{{- if include "lbguard.interposes" . }}
- name: lbguard-calls
  mountPath: {{ .Values.settings.interposer.directory }}
{{- end }}
{{- end }}

{{- define "lbguard.guard.loadBalancerMounts" -}}
{{- include "lbguard.sharedMounts" . | trim -}}
{{- if include "lbguard.interposes" . }}
- name: lbguard-nfqlb
  mountPath: {{ .Values.guard.interposer.programDirectory }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "lbguard.guard.loadBalancerEnv" -}}
{{- if include "lbguard.interposes" . -}}
# The load balancer runs nfqlb from the first directory on PATH.
- name: PATH
  value: {{ printf "%s:%s" .Values.guard.interposer.programDirectory .Values.guard.interposer.path }}
- name: LBGUARD_NFQLB_DIR
  value: {{ .Values.settings.interposer.directory }}
{{- end -}}
{{- end }}

{{/* The load balancer's container in a patch that takes away what the other patch added. */}}
{{- define "lbguard.guard.loadBalancerRemoved" -}}
{{- with include "lbguard.guard.loadBalancerEnv" . | fromYamlArray -}}
env:
  {{- range . }}
  - name: {{ .name }}
    $patch: delete
  {{- end }}
{{- end }}
{{- $mounts := include "lbguard.guard.loadBalancerMounts" . | fromYamlArray }}
{{- with .Values.guard.sharedMemory.existingVolume }}
{{- $own := . }}
{{- $others := list }}
{{- range $mounts }}{{ if ne .name $own }}{{ $others = append $others . }}{{ end }}{{ end }}
{{- $mounts = $others }}
{{- end }}
{{- with $mounts }}
volumeMounts:
  {{- range . }}
  - mountPath: {{ .mountPath }}
    $patch: delete
  {{- end }}
{{- end }}
{{- end }}
