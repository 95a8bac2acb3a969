{{/*
Addresses in values, checked number by number: values.schema.json keeps to patterns that a person can read in an error.
Each takes (list path text) and stops the install with a sentence.
*/}}
{{- define "portolan.v4" -}}
(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}
{{- end }}
{{- define "portolan.v6" -}}
([0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}
{{- end }}

{{- define "portolan.checkIP" -}}
{{- $pattern := printf "^(%s|%s)$" (include "portolan.v4" .) (include "portolan.v6" .) }}
{{- if not (regexMatch $pattern (index . 1)) }}
{{- fail (printf "\n\n%s: %q is not an IP address\n" (index . 0) (index . 1)) }}
{{- end }}
{{- end }}

{{- define "portolan.cidr" -}}
({{ include "portolan.v4" . }}/(3[0-2]|[12]?[0-9])|{{ include "portolan.v6" . }}/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))
{{- end }}

{{- define "portolan.checkCIDR" -}}
{{- if not (regexMatch (printf "^%s$" (include "portolan.cidr" .)) (index . 1)) }}
{{- fail (printf "\n\n%s: %q is not a CIDR such as 10.0.0.0/16\n" (index . 0) (index . 1)) }}
{{- end }}
{{- end }}

{{- define "portolan.checkRange" -}}
{{- $v4 := include "portolan.v4" . }}
{{- $v6 := include "portolan.v6" . }}
{{- $pattern := printf "^(%s|%s ?- ?%s|%s ?- ?%s)$" (include "portolan.cidr" .) $v4 $v4 $v6 $v6 }}
{{- if not (regexMatch $pattern (index . 1)) }}
{{- fail (printf "\n\n%s: %q is neither a CIDR such as 192.0.2.0/24 nor a range such as 192.0.2.10-192.0.2.20\n" (index . 0) (index . 1)) }}
{{- end }}
{{- end }}

{{- define "portolan.checks" -}}
{{- range $name, $pool := .Values.pools }}
{{- range $at, $text := $pool.addresses }}
{{- include "portolan.checkRange" (list (printf "pools.%s.addresses[%d]" $name $at) $text) }}
{{- end }}
{{- range $at, $text := $pool.exclude }}
{{- include "portolan.checkRange" (list (printf "pools.%s.exclude[%d]" $name $at) $text) }}
{{- end }}
{{- end }}
{{- range $name, $peer := .Values.bgp.peers }}
{{- include "portolan.checkIP" (list (printf "bgp.peers.%s.address" $name) $peer.address) }}
{{- with $peer.sourceAddress }}
{{- include "portolan.checkIP" (list (printf "bgp.peers.%s.sourceAddress" $name) .) }}
{{- end }}
{{- end }}
{{- range $at, $text := .Values.proxy.clusterCIDRs }}
{{- include "portolan.checkCIDR" (list (printf "proxy.clusterCIDRs[%d]" $at) $text) }}
{{- end }}
{{- range $at, $text := .Values.advertise.externalIPCIDRs }}
{{- include "portolan.checkCIDR" (list (printf "advertise.externalIPCIDRs[%d]" $at) $text) }}
{{- end }}
{{- range $name, $advertisement := .Values.advertisements }}
{{- range $at, $text := $advertisement.externalIPCIDRs }}
{{- include "portolan.checkCIDR" (list (printf "advertisements.%s.externalIPCIDRs[%d]" $name $at) $text) }}
{{- end }}
{{- end }}
{{- end }}
