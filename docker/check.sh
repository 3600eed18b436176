#!/usr/bin/env bash
# Build docker/Dockerfile.cpu and try the image, without a Docker engine: by buildah, on a Debian
# from debootstrap under the name that FROM uses. BASE=docker.io/library/debian:12.11-slim, if set,
# is pulled instead. Needs root, buildah and debootstrap (Debian packages of these names).
set -euo pipefail
set -m # the server gets a process group of its own
cd "$(dirname "$0")/.."

export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}
image=localhost/fastgen-vllm:check
base=docker.io/library/debian:12.11-slim
work=$(mktemp -d)
container=
server=

clean_up() {
    [ -z "$server" ] || kill -KILL -- "-$server" 2>/dev/null || true
    [ -z "$container" ] || buildah rm "$container" >/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT

say() { printf '\n== %s\n' "$*"; }

say "lint"
hadolint docker/Dockerfile.cpu

if [ -n "${BASE:-}" ]; then
    buildah pull --quiet "$BASE" >/dev/null
elif ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    say "base image"
    debootstrap --variant=minbase bookworm "$work/root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" \
        >"$work/debootstrap.log"
    made=$(buildah from scratch)
    buildah add --quiet "$made" "$work/root" / >/dev/null
    buildah config --cmd bash "$made"
    buildah commit --quiet --rm "$made" "$base" >/dev/null
    rm -rf "$work/root"
fi

say "build"
options=(--build-arg "BASE=${BASE:-$base}")
for name in PIP_INDEX_URL PIP_FIND_LINKS; do
    [ -z "${!name:-}" ] || options+=(--build-arg "$name=${!name}")
done
for path in ${PIP_FIND_LINKS:-}; do # those that are on this machine
    [ ! -e "$path" ] || options+=(--volume "$path:$path:ro")
done
if [ -n "${PIP_CERT:-}" ]; then
    options+=(--volume "$PIP_CERT:/run/pip-cert.pem:ro" --build-arg PIP_CERT=/run/pip-cert.pem)
fi
buildah build --pull-never --layers --tag "$image" --file docker/Dockerfile.cpu "${options[@]}" .

container=$(buildah from --pull-never "$image")
entrypoint() { buildah inspect --type image --format '{{range .OCIv1.Config.Entrypoint}}{{.}} {{end}}' "$image"; }
health() {
    buildah run "$container" -- python -c \
        "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=9)" 2>/dev/null
}

start() {
    # shellcheck disable=SC2046 # words of the entry point
    buildah run "$container" -- $(entrypoint) --enforce-eager --max-model-len 2048 >"$work/server.log" 2>&1 &
    server=$!
    for _ in $(seq 150); do
        health && return
        kill -0 "$server" 2>/dev/null || break
        sleep 2
    done
    cat "$work/server.log"
    exit 1
}

stop() { # TERM: as an engine does, to the container's first process; KILL: everything in it
    if [ "$1" = TERM ]; then
        pkill -TERM --pgroup "$server" --full "^/opt/fastgen/bin/python[0-9.]* /opt/fastgen/bin/fastgen-vllm serve"
    else
        kill -KILL -- "-$server"
    fi
    code=0
    wait "$server" || code=$?
    server=
}

ask() {
    local answer
    answer=$(curl --fail --silent --show-error http://127.0.0.1:8000/v1/chat/completions \
        --header 'Content-Type: application/json' --data '{"model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 20, "temperature": 0}')
    echo "$answer"
    grep --quiet "capital of France is Paris" <<<"$answer"
}

say "serve"
start
ask
buildah run "$container" -- sh -c 'test "$(id -u)" = 1000'

say "stop"
stop TERM
[ "$code" = 0 ] || { echo "exit code $code after SIGTERM"; cat "$work/server.log"; exit 1; }

say "killed and started again"
start
stop KILL
start
ask
stop TERM

say "all is well"
