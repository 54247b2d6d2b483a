#!/bin/sh
# Makes this machine trust the authority of a Darter proxy, and its clients use that proxy, or takes both back.
#
#   trust-ca.sh --proxy http://PROXY:65001 [--fingerprint SHA256] [--docker REGISTRY]... [--use CLIENT]... [--restart]
#   trust-ca.sh --file ca.crt              [--fingerprint SHA256] [--docker REGISTRY]...
#   trust-ca.sh --undo
#
# Works on Debian, Ubuntu, Alpine, RHEL, Fedora, SUSE and Arch, with nothing but a POSIX shell and what these systems have.
# Running it again changes nothing. A proxy hands this script out at /setup.sh, with its own address on the last line.
set -eu

usage() {
    cat <<'USAGE'
usage: trust-ca.sh --proxy http://HOST:PORT | --file FILE  [options]
       trust-ca.sh --undo [--root DIR]

  --proxy URL          fetch the certificate from URL/ca.crt
  --file FILE          take it from a file
                       Either may hold several: while one authority takes another's place, both are to be trusted.
                       Those that are not handed out any more are removed
  --fingerprint HEX    trust only a certificate with this SHA-256 fingerprint, as `darter up` and `darter ca show` print
                       it (colons or not); may be repeated. Over plain HTTP this is what tells the proxy from somebody
                       in between
  --docker REGISTRY    also trust it for this registry only in Docker's own folder (certs.d); may be repeated
  --no-system          leave the system's store alone: for --docker and --use only
  --use CLIENT         have CLIENT use the proxy; may be repeated. docker, containerd, crio: services of systemd;
                       apt; shell: whatever reads HTTP_PROXY and HTTPS_PROXY, from the next login on
  --restart            restart the services that were named with --use
  --root DIR           work on the system in DIR, as for an image that is being built; its stores are not rebuilt
  --undo               remove what this script has put anywhere
USAGE
}

# The name under which the certificate stands everywhere; a second one is darter-2.crt.
name=darter.crt

# More are never handed out.
most=8

fail() {
    printf 'trust-ca.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

wrong_usage() {
    usage >&2
    fail "$1" 64
}

have() {
    command -v "$1" >/dev/null 2>&1
}

main() {
    proxy='' file='' fingerprints='' registries='' clients='' system=yes root='' undo=no restart=no
    while [ $# -gt 0 ]; do
        case $1 in
            --undo) undo=yes ;;
            --restart) restart=yes ;;
            --help | -h) usage && exit 0 ;;
            --no-system) system=no ;;
            --proxy | --file | --fingerprint | --docker | --use | --root)
                [ $# -ge 2 ] || wrong_usage "$1 needs a value"
                case $1 in
                    --proxy) proxy=$2 ;;
                    --file) file=$2 ;;
                    --fingerprint) fingerprints="$fingerprints $(printf '%s' "$2" | tr -d ': \n' | tr 'A-F' 'a-f')" ;;
                    --docker) registries="$registries $(registry_name "$2")" ;;
                    --use) clients="$clients $(client_name "$2")" ;;
                    --root) root=${2%/} ;;
                esac
                shift
                ;;
            *) wrong_usage "unknown option: $1" ;;
        esac
        shift
    done
    if [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
        fail "only root can change what this machine trusts (or use --root)"
    fi
    if [ $undo = yes ]; then
        remove
        return
    fi
    if [ -z "$proxy$file" ]; then
        wrong_usage "where is the certificate? Give --proxy or --file"
    fi
    if [ -n "$proxy" ] && [ -n "$file" ]; then
        wrong_usage "--proxy and --file exclude each other"
    fi
    if [ $system = no ] && [ -z "$registries$clients" ]; then
        wrong_usage "--no-system without --docker or --use leaves nothing to do"
    fi
    if [ -n "$clients" ]; then
        check_usable
    fi

    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
    if [ -n "$proxy" ]; then
        fetch "${proxy%/}/ca.crt" "$work/$name"
    else
        [ -r "$file" ] || fail "cannot read $file"
        cp "$file" "$work/$name"
    fi
    take_apart "$work/$name"
    if [ $system = yes ]; then
        install_system
    fi
    for registry in $registries; do
        if put "$work/all" "$root/etc/docker/certs.d/$registry/$name"; then
            echo "trusted by docker for $registry"
        fi
    done
    for client in $clients; do
        use_proxy "$client"
    done
    restart_services
}

# A registry as it stands in image names: it becomes the name of a folder.
registry_name() {
    case $1 in
        '' | -* | .* | *[!A-Za-z0-9.:_-]*) wrong_usage "no registry: $1 (expected a host name, perhaps with a port)" ;;
    esac
    printf '%s' "$1"
}

client_name() {
    case $1 in
        docker | containerd | crio | apt | shell) printf '%s' "$1" ;;
        *) wrong_usage "--use knows docker, containerd, crio, apt and shell, not $1" ;;
    esac
}

# Before anything is changed. The URL goes into files that others read in languages of their own.
check_usable() {
    [ -n "$proxy" ] || wrong_usage "--use needs --proxy: a certificate alone does not say where the proxy is"
    case $proxy in
        http://* | https://*) ;;
        *) wrong_usage "the proxy's URL begins with http:// or https://, not as $proxy" ;;
    esac
    case $proxy in
        *[!]A-Za-z0-9.:/@_~%[-]*) wrong_usage "there is something in the proxy's URL that is in none: $proxy" ;;
    esac
    for client in $clients; do
        case $client in
            docker | containerd | crio) [ -d "$root/etc/systemd" ] || fail "this is not a system with systemd; set HTTPS_PROXY for $client by hand" ;;
        esac
    done
}

# fetch URL FILE: never by way of the very proxy that is not trusted yet.
fetch() {
    if have curl; then
        curl --fail --silent --show-error --noproxy '*' --max-time 30 --output "$2" "$1" || fail "cannot fetch $1"
    elif have wget; then
        env -u http_proxy -u HTTP_PROXY wget -q -O "$2" "$1" || fail "cannot fetch $1"
    else
        fail "neither curl nor wget is here; fetch $1 yourself and give it with --file"
    fi
}

# A folder stays when somebody else keeps something there.
remove_if_empty() {
    [ -n "$(ls -A "$1")" ] || rmdir "$1"
}

# The certificates of a file, and nothing else, each into a file of its own ($work/trust/darter.crt, darter-2.crt, ...)
# and into $work/all; without those whose fingerprint was not asked for.
take_apart() {
    mkdir "$work/parts" "$work/trust"
    awk -v parts="$work/parts/" '
        /-----BEGIN CERTIFICATE-----/ { number++; inside = 1 }
        inside { print > (parts number) }
        /-----END CERTIFICATE-----/ { inside = 0; close(parts number) }' "$1"
    count=$(awk '/-----BEGIN / { count++ } END { print count + 0 }' "$1")
    if [ "$count" = 0 ] || [ "$count" -gt $most ] || [ "$count" != "$(find "$work/parts" -type f | wc -l | tr -d ' ')" ]; then
        fail "this is not one certificate in PEM, nor several"
    fi
    number=0 taken=0
    while [ $number -lt "$count" ]; do
        number=$((number + 1))
        found=$(grep -v -e '-----' "$work/parts/$number" | base64 -d | sha256sum | cut -d ' ' -f 1)
        case "$fingerprints " in
            ' ') echo "fingerprint (compare it with what the proxy's operator sees): $found" ;;
            *" $found "*) ;;
            *)
                unwanted="${unwanted:-} $found"
                continue
                ;;
        esac
        taken=$((taken + 1))
        cp "$work/parts/$number" "$work/trust/$(numbered $taken)"
        cat "$work/parts/$number" >>"$work/all"
    done
    if [ $taken = 0 ]; then
        fail "the certificate's fingerprint is${unwanted:-}, not$fingerprints: nothing was changed"
    fi
    [ -z "${unwanted:-}" ] || echo "handed out, and not trusted, because nobody asked for this fingerprint:$unwanted"
}

# The name of the first, the second, ... certificate.
numbered() {
    if [ "$1" = 1 ]; then echo "$name"; else echo "${name%.crt}-$1.crt"; fi
}

# The folder where this kind of system keeps authorities of its own, and what rebuilds its store from it.
find_store() {
    if [ -d "$root/etc/pki/ca-trust/source/anchors" ]; then # RHEL, Fedora
        anchors=$root/etc/pki/ca-trust/source/anchors rebuild='update-ca-trust extract'
    elif [ -d "$root/etc/pki/trust/anchors" ]; then # SUSE
        anchors=$root/etc/pki/trust/anchors rebuild=update-ca-certificates
    elif [ -d "$root/etc/ca-certificates/trust-source/anchors" ]; then # Arch
        anchors=$root/etc/ca-certificates/trust-source/anchors rebuild='update-ca-trust extract'
    elif [ -d "$root/usr/share/ca-certificates" ]; then # Debian, Ubuntu, Alpine
        anchors=$root/usr/local/share/ca-certificates rebuild=update-ca-certificates
    else
        return 1
    fi
}

install_system() {
    find_store || fail "this system keeps its authorities in no place that is known here; is ca-certificates installed?"
    changed=no number=0
    while [ $number -lt $most ]; do
        number=$((number + 1))
        each=$(numbered $number)
        if [ -e "$work/trust/$each" ]; then
            if put "$work/trust/$each" "$anchors/$each"; then
                changed=yes
                echo "trusted by this system ($anchors/$each)"
            fi
        elif [ -e "$anchors/$each" ]; then
            rm "$anchors/$each"
            # Otherwise the links to it would stay.
            [ "$rebuild" != update-ca-certificates ] || rebuild='update-ca-certificates --fresh'
            changed=yes
            echo "not handed out any more, removed: $anchors/$each"
        fi
    done
    if [ $changed = yes ]; then
        rebuild_store
        cat <<'NEXT'
Programs read the store when they start. Restart those that use the proxy, for instance:
  systemctl restart docker       (or containerd, crio)
Programs with a store of their own want the file by name: NODE_EXTRA_CA_CERTS, REQUESTS_CA_BUNDLE, CARGO_HTTP_CAINFO.
NEXT
    fi
}

rebuild_store() {
    if [ -n "$root" ]; then
        echo "run in $root, to rebuild its store: $rebuild"
        return
    fi
    # Split on purpose: a command and its argument.
    # shellcheck disable=SC2086
    $rebuild >/dev/null || fail "$rebuild failed"
}

# Where it is said to a client that there is a proxy. Of a service's files the last counts, and what other proxies' scripts
# and docker's documentation call http-proxy.conf may stand there.
place_of() {
    case $1 in
        apt) echo "$root/etc/apt/apt.conf.d/01darter" ;;
        shell) echo "$root/etc/profile.d/darter.sh" ;;
        *) echo "$root/etc/systemd/system/$1.service.d/zz-darter.conf" ;;
    esac
}

use_proxy() {
    url=${proxy%/}
    case $1 in
        apt) printf 'Acquire::http::Proxy "%s";\nAcquire::https::Proxy "%s";\n' "$url" "$url" ;;
        shell) printf 'export HTTP_PROXY=%s HTTPS_PROXY=%s http_proxy=%s https_proxy=%s\n' "$url" "$url" "$url" "$url" ;;
        *)
            # To systemd %% is a percent sign.
            url=$(printf '%s' "$url" | sed 's/%/%%/g')
            printf '[Service]\nEnvironment="HTTP_PROXY=%s" "HTTPS_PROXY=%s"\n' "$url" "$url"
            ;;
    esac >"$work/use"
    if put "$work/use" "$(place_of "$1")"; then
        echo "uses the proxy: $1 ($(place_of "$1"))"
    fi
}

# Also when nothing has changed here: it may have been started before the last time.
restart_services() {
    services=''
    for client in $clients; do
        case $client in docker | containerd | crio) services="$services $client.service" ;; esac
    done
    [ -n "$services" ] || return 0
    if [ -n "$root" ] || [ $restart = no ]; then
        echo "to have them read it: systemctl daemon-reload && systemctl restart$services"
        return
    fi
    systemctl daemon-reload
    # Split on purpose: one word a service.
    # shellcheck disable=SC2086
    systemctl restart $services
    echo "restarted:$services"
}

# put FROM TO: false when it stands there already. It is called as a condition, where the shell does not end by itself.
put() {
    if cmp -s "$1" "$2"; then
        echo "unchanged: $2"
        return 1
    fi
    mkdir -p "$(dirname "$2")" || fail "cannot write $2"
    # Readable by all, whatever the umask: it is public.
    if ! { cp "$1" "$2.new" && chmod 644 "$2.new" && mv "$2.new" "$2"; }; then
        rm -f "$2.new"
        fail "cannot write $2"
    fi
}

remove() {
    removed=no
    if find_store; then
        for certificate in "$anchors/$name" "$anchors/${name%.crt}"-[2-9].crt; do
            [ -e "$certificate" ] || continue
            rm "$certificate"
            removed=yes
            echo "removed: $certificate"
        done
    fi
    if [ $removed = yes ]; then
        # Otherwise the links to them would stay.
        [ "$rebuild" != update-ca-certificates ] || rebuild='update-ca-certificates --fresh'
        rebuild_store
    fi
    for certificate in "$root"/etc/docker/certs.d/*/"$name"; do
        [ -e "$certificate" ] || continue
        rm "$certificate"
        remove_if_empty "$(dirname "$certificate")"
        echo "removed: $certificate"
    done
    reload=''
    for client in docker containerd crio apt shell; do
        place=$(place_of "$client")
        [ -e "$place" ] || continue
        rm "$place"
        echo "removed: $place"
        case $client in docker | containerd | crio)
            reload="$reload $client.service"
            remove_if_empty "$(dirname "$place")"
            ;;
        esac
    done
    [ -z "$reload" ] || echo "to have them read it: systemctl daemon-reload && systemctl restart$reload"
}

main "$@"
