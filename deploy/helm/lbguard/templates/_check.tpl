{{/*
Refuse settings that contradict each other before anything is deployed, and name them. lbguard refuses the same settings at
its start (the settings' validators). The schema and lbguard.checkDuration check single values.

Takes (dict "component" "guard" "known" KNOWN): a dict of settings' names to their values as text, `?` for one that comes
from extraEnv and is not known here.
*/}}
{{- define "lbguard.checkTogether" -}}
{{- include "lbguard.checkListen" (dict "known" .known "name" "metrics.listen") -}}
{{- if eq .component "guard" -}}
{{- include "lbguard.checkGuard" .known -}}
{{- else -}}
{{- include "lbguard.checkProbe" .known -}}
{{- end -}}
{{- end }}

{{- define "lbguard.checkGuard" -}}
{{- $known := . -}}
{{- range $name := list "grace.window" "grace.neighbor_window" "grace.verdict_window" -}}
{{- include "lbguard.checkAtMost" (dict "known" $known "name" $name "limit" "grace.max" "why" "longer than grace.max") -}}
{{- end -}}
{{- if and (eq (get . "source") "interposer") (eq (get . "distributor.kind") "nftables") -}}
{{- fail "settings.distributor.kind = nftables: the load balancer's packets follow nfqlb's memory; allowed: auto, nfqlb-shm or observe with settings.source interposer" -}}
{{- end -}}
{{- if and (eq (get . "source") "kernel") (eq (get . "mode") "enforce") -}}
{{- fail "settings.mode = enforce: lbguard would read its own rules and routes back as the source; allowed: companion or observe with settings.source kernel" -}}
{{- end -}}
{{- if eq (get . "source") "nsp" -}}
{{- range $name := list "nsp.trench" "nsp.conduit" -}}
{{- if not (get $known $name) -}}
{{- fail (printf "settings.%s: needed with settings.source nsp" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "lbguard.checkAscending" . -}}
{{- include "lbguard.checkRanges" . -}}
{{- include "lbguard.checkKubernetes" . -}}
{{- include "lbguard.checkTls" (dict "known" . "group" "verdicts" "ca" "tls_client_ca" "spiffe" true) -}}
{{- include "lbguard.checkTls" (dict "known" . "group" "nsp" "ca" "tls_ca" "spiffe" true) -}}
{{- include "lbguard.checkTls" (dict "known" . "group" "nsm" "ca" "tls_ca") -}}
{{- include "lbguard.checkListen" (dict "known" . "name" "verdicts.listen") -}}
{{- if and (get . "verdicts.listen") (not (get . "verdicts.tls_cert")) (not (get . "verdicts.spiffe_socket")) -}}
{{- fail (printf "settings.verdicts.listen = %s: plaintext TCP is not served; allowed: with settings.verdicts.tls_cert, tls_key and tls_client_ca, or with spiffe_socket" (get . "verdicts.listen")) -}}
{{- end -}}
{{- $burst := get . "verdicts.burst" -}}
{{- $request := get . "verdicts.max_per_request" -}}
{{- if and (ne $burst "?") (ne $request "?") (lt (int64 $burst) (int64 $request)) -}}
{{- fail (printf "settings.verdicts.burst = %s: a full request is never accepted; allowed: at least settings.verdicts.max_per_request, which is %s" $burst $request) -}}
{{- end -}}
{{- end }}

{{- define "lbguard.checkProbe" -}}
{{- include "lbguard.checkTls" (dict "known" . "group" "probe" "ca" "tls_ca" "spiffe" true) -}}
{{- include "lbguard.checkTls" (dict "known" . "group" "probe.nsm" "ca" "tls_ca") -}}
{{- include "lbguard.checkAtMost" (dict "known" . "name" "probe.timeout" "limit" "probe.interval" "why" "rounds would overlap") -}}
{{- $bad := get . "probe.bad_rounds" -}}
{{- $of := get . "probe.of_rounds" -}}
{{- if and (ne $bad "?") (ne $of "?") (gt (int64 $bad) (int64 $of)) -}}
{{- fail (printf "settings.probe.bad_rounds = %s: more than probe.of_rounds; allowed: at most settings.probe.of_rounds, which is %s" $bad $of) -}}
{{- end -}}
{{- if and (eq (get . "probe.enabled") "true") (eq (get . "probe.connections") "file") (not (get . "probe.connections_file")) -}}
{{- fail "settings.probe.connections_file: needed with settings.probe.connections file" -}}
{{- end -}}
{{- end }}

{{/* A duration in seconds. */}}
{{- define "lbguard.seconds" -}}
{{- $factors := dict "us" 0.000001 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "" 1.0 -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $factors (regexFind "[a-z]*$" .)) -}}
{{- end }}

{{/* Refuse a duration that is longer than another. A duration that is not set is accepted. */}}
{{- define "lbguard.checkAtMost" -}}
{{- $text := get .known .name -}}
{{- $limit := get .known .limit -}}
{{- if and $text (ne $text "?") (ne $limit "?") -}}
{{- if gt (include "lbguard.seconds" $text | float64) (include "lbguard.seconds" $limit | float64) -}}
{{- fail (printf "settings.%s = %s: %s; allowed: at most settings.%s, which is %s" .name $text .why .limit $limit) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Refuse a part of what TLS needs, and certificates from two places. */}}
{{- define "lbguard.checkTls" -}}
{{- $given := list -}}
{{- $missing := list -}}
{{- range $name := list "tls_cert" "tls_key" .ca -}}
{{- if get $.known (printf "%s.%s" $.group $name) -}}
{{- $given = append $given $name -}}
{{- else -}}
{{- $missing = append $missing $name -}}
{{- end -}}
{{- end -}}
{{- if and $given $missing -}}
{{- fail (printf "settings.%s.%s: needed with settings.%s.%s: certificate, key and authorities go together" .group (first $missing) .group (first $given)) -}}
{{- end -}}
{{- if and $given .spiffe (get .known (printf "%s.spiffe_socket" .group)) -}}
{{- fail (printf "settings.%s.spiffe_socket: not together with settings.%s.%s: certificates come from one place only" .group .group (first $given)) -}}
{{- end -}}
{{- end }}

{{/* Refuse values that are not listen addresses. lbguard itself checks the host's address. */}}
{{- define "lbguard.checkListen" -}}
{{- $text := get .known .name -}}
{{- if and $text (ne $text "?") -}}
{{- $port := regexFind "[0-9]+$" $text -}}
{{- if or (not (regexMatch "^([0-9.]*|\\[[0-9a-fA-F:.]+(%[^]]+)?\\]):[0-9]+$" $text)) (gt (len $port) 5) (gt (int64 (default "99999" $port)) 65535) -}}
{{- fail (printf "settings.%s = %s: not a listen address; allowed: :9464, 127.0.0.1:9464, [::1]:9464, or empty for off" .name $text) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Refuse repeats that do not start with 0 and ascend. */}}
{{- define "lbguard.checkAscending" -}}
{{- $text := get . "announce.repeats" -}}
{{- if ne $text "?" -}}
{{- $before := -1.0 -}}
{{- $allowed := "0 and then durations up to 1m in ascending order, such as 0s,100ms,1.1s" -}}
{{- range $item := splitList "," $text -}}
{{- $seconds := include "lbguard.seconds" (trim $item) | float64 -}}
{{- if or (not (trim $item)) (and (lt $before 0.0) (gt $seconds 0.0)) (le $seconds $before) (gt $seconds 60.0) -}}
{{- fail (printf "settings.announce.repeats = %s: does not start with 0 and ascend; allowed: %s" $text $allowed) -}}
{{- end -}}
{{- $before = $seconds -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Refuse streams of the source kernel that are not ranges of marks, are named twice, or share marks. */}}
{{- define "lbguard.checkRanges" -}}
{{- $text := get . "kernel_source.streams" -}}
{{- $seen := list -}}
{{- if and $text (ne $text "?") -}}
{{- range $range := splitList "," $text -}}
{{- $range = trim $range -}}
{{- if not (regexMatch "^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?=[0-9]{1,10}-[0-9]{1,10}$" $range) -}}
{{- fail (printf "settings.kernel_source.streams = %s: not a range of marks; allowed: NAME=FIRST-LAST, such as stream-a=5001-5100" $range) -}}
{{- end -}}
{{- $name := first (splitList "=" $range) -}}
{{- $marks := splitList "-" (last (splitList "=" $range)) -}}
{{- $first := int64 (first $marks) -}}
{{- $last := int64 (last $marks) -}}
{{- if or (lt $first 1) (gt $first $last) (gt $last 4294967295) -}}
{{- fail (printf "settings.kernel_source.streams = %s: the marks of a range ascend from 1 to 4294967295" $range) -}}
{{- end -}}
{{- range $other := $seen -}}
{{- if eq $name $other.name -}}
{{- fail (printf "settings.kernel_source.streams = %s: a stream is named twice; allowed: one range a stream" $text) -}}
{{- end -}}
{{- if and (le $first $other.last) (le $other.first $last) -}}
{{- fail (printf "settings.kernel_source.streams = %s: %s and %s share marks; allowed: ranges that do not overlap" $text $other.name $name) -}}
{{- end -}}
{{- end -}}
{{- $seen = append $seen (dict "name" $name "first" $first "last" $last) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Refuse targets that clash within targets.streams. The schema has checked each value; addresses are left to lbguard. */}}
{{- define "lbguard.checkStreams" -}}
{{- $seen := list -}}
{{- range $stream := .Values.targets.streams -}}
{{- $room := int64 (default 100 $stream.max_targets) -}}
{{- $offset := int64 (hasKey $stream "identifier_offset" | ternary $stream.identifier_offset 5000) -}}
{{- $last := add $offset $room -}}
{{- range $other := $seen -}}
{{- if eq $stream.name $other.name -}}
{{- fail (printf "targets.streams: the name %s is used twice" $stream.name) -}}
{{- end -}}
{{- if and (lt $offset $other.last) (lt $other.offset $last) -}}
{{- fail (printf "targets.streams: %s and %s share marks; allowed: an identifier_offset of %d or more for %s" $other.name $stream.name $other.last $stream.name) -}}
{{- end -}}
{{- end -}}
{{- $seen = append $seen (dict "name" $stream.name "offset" $offset "last" $last) -}}
{{- $identifiers := list -}}
{{- range $target := $stream.targets -}}
{{- $identifier := int64 $target.identifier -}}
{{- if has $identifier $identifiers -}}
{{- fail (printf "targets.streams: target %d of %s is listed twice" $identifier $stream.name) -}}
{{- end -}}
{{- if gt $identifier $room -}}
{{- fail (printf "targets.streams: target %d of %s is outside 1 to max_targets, which is %d" $identifier $stream.name $room) -}}
{{- end -}}
{{- $identifiers = append $identifiers $identifier -}}
{{- end -}}
{{- end -}}
{{- end }}
