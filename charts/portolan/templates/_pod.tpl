{{- define "portolan.labels" -}}
app.kubernetes.io/name: portolan
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Pods of one component: (list $ "agent"). */}}
{{- define "portolan.selector" -}}
app.kubernetes.io/name: portolan
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "portolan.image" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "portolan.env" -}}
{{- with .Values.logLevel }}
- { name: RUST_LOG, value: {{ . | quote }} }
{{- end }}
{{- with .Values.apiServer.host }}
- { name: KUBERNETES_SERVICE_HOST, value: {{ . | quote }} }
- { name: KUBERNETES_SERVICE_PORT, value: {{ $.Values.apiServer.port | quote }} }
{{- end }}
{{- end }}

{{- define "portolan.configVolume" -}}
- name: config
  configMap: { name: portolan }
{{- end }}

{{/* Probes of the HTTP server: (list port "host: 127.0.0.1, " or ""). */}}
{{- define "portolan.probes" -}}
livenessProbe: { httpGet: { {{ index . 1 }}port: {{ index . 0 }}, path: /healthz }, periodSeconds: 10, failureThreshold: 6 }
readinessProbe: { httpGet: { {{ index . 1 }}port: {{ index . 0 }}, path: /readyz }, periodSeconds: 5 }
{{- end }}
