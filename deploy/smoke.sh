#!/usr/bin/env bash
# Fail unless a server answers in every mode, streamed and not, and counts it on /metrics.
#
#   deploy/smoke.sh [URL]        default: http://127.0.0.1:30000
#
# DLM_API_KEY: the server's key, where it has one. Needs bash and curl. Prints a line per check; exit status 0 or 1.
set -uo pipefail

url=${1:-http://127.0.0.1:30000}
url=${url%/}
failed=0

fetch() { # path, then more arguments of curl
    # A key on the command line could be read by others on this machine: it goes through a file.
    curl --silent --show-error --fail-with-body --location --max-time 60 --noproxy '*' \
        --config <([[ -z ${DLM_API_KEY:-} ]] || printf 'header = "Authorization: Bearer %s"\n' "$DLM_API_KEY") \
        "${@:2}" "$url$1" 2>&1
}

check() { # title, answer, patterns that must all be in it
    local title=$1 answer=$2 pattern
    shift 2
    for pattern in "$@"; do
        if ! grep -Eq -- "$pattern" <<<"$answer"; then
            echo "FAILED  $title: no /$pattern/ in: ${answer:0:300}"
            failed=1
            return
        fi
    done
    echo "ok      $title"
}

chat() { # mode, stream
    fetch /v1/chat/completions --header 'Content-Type: application/json' --data "{
        \"messages\": [{\"role\": \"user\", \"content\": \"What is 15 + 69?\"}], \"max_tokens\": 48,
        \"temperature\": 0, \"generation_mode\": \"$1\", \"stream\": $2}"
}

check "/health" "$(fetch /health --write-out 'status %{http_code}')" 'status 200'
for mode in autoregressive self_speculation diffusion auto; do
    told="\"generation_mode\": ?\"$mode\""
    check "$mode" "$(chat "$mode" false)" "$told" '"content": ?"[^"]' '"num_forwards": ?[1-9]'
    check "$mode, streamed" "$(chat "$mode" true)" "$told" '"content": ?"[^"]' '^data: \[DONE\]'
done
check "a wrong field is refused" "$(fetch /v1/chat/completions \
    --header 'Content-Type: application/json' --data '{"messages": [], "generation_mode": "telepathy"}')" \
    '"param": ?"generation_mode"'
series=$(fetch /metrics/)
for mode in autoregressive self_speculation diffusion auto; do
    check "metrics of $mode" "$series" "^dlm_output_tokens_total\{mode=\"$mode\"\} [1-9]"
done
((failed)) && echo "smoke: FAILED at $url" || echo "smoke: ok at $url"
exit "$failed"
