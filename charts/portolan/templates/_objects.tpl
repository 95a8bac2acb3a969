{{/* What the controller applies from values: a YAML stream of our own kinds. */}}
{{- define "portolan.objects" -}}
{{- range $name, $pool := .Values.pools }}
---
{{ include "portolan.object" (list "IPAddressPool" $name $pool) }}
{{- end }}
{{- range $name, $peer := .Values.bgp.peers }}
{{- $spec := omit $peer "address" "asn" "port" }}
{{- $_ := set $spec "peerAddress" $peer.address }}
{{- $_ := set $spec "peerASN" $peer.asn }}
{{- if $peer.port }}{{ $_ := set $spec "peerPort" $peer.port }}{{ end }}
---
{{ include "portolan.object" (list "BGPPeer" $name $spec) }}
{{- end }}
{{- range $name, $spec := .Values.advertisements }}
---
{{ include "portolan.object" (list "Advertisement" $name $spec) }}
{{- end }}
{{- if and (not .Values.advertisements) .Values.bgp.peers .Values.advertise.bgp }}
{{- $spec := dict "sources" .Values.advertise.sources "bgp" dict }}
{{- with .Values.advertise.externalIPCIDRs }}{{ $_ := set $spec "externalIPCIDRs" . }}{{ end }}
---
{{ include "portolan.object" (list "Advertisement" "default" $spec) }}
{{- end }}
{{- end }}

{{- define "portolan.object" -}}
{{- $metadata := dict "name" (index . 1) }}
{{- dict "apiVersion" "portolan.dev/v1alpha1" "kind" (index . 0) "metadata" $metadata "spec" (index . 2) | toYaml }}
{{- end }}

{{/* What agents and controllers read: src/config.rs. */}}
{{- define "portolan.config" -}}
{{- $bgp := dict }}
{{- with .Values.bgp.asn }}{{ $_ := set $bgp "asn" . }}{{ end }}
{{- with .Values.bgp.listen }}{{ $_ := set $bgp "listen" . }}{{ end }}
{{- /* YAML reads a bare `off` as false. */}}
{{- $routes := .Values.nodeRoutes | default "off" }}
{{- dict "nodeRoutes" $routes "proxy" .Values.proxy "bgp" $bgp "classes" .Values.classes | toYaml }}
{{- end }}
