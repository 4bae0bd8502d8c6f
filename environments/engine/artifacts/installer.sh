#!/bin/sh
# An environment of condastore, lock @LOCK@, for @PLATFORM@.
# It installs only the contents of this file: it neither solves nor downloads.
#
#     sh @FILE@ -p PREFIX        asks for agreement to the licenses
#     sh @FILE@ -p PREFIX -b     does not ask
#     sh @FILE@ -l               lists packages and licenses
#     sh @FILE@ -t               checks this file
set -eu
LC_ALL=C
export LC_ALL
umask 022

self=$0
offset="@OFFSET@"
sha256="@SHA256@"
room="@ROOM@"
system="@SYSTEM@"
placeholder_files=@COUNT@

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    for hint in "$@"; do printf '  hint: %s\n' "$hint" >&2; done
    exit 1
}

licenses() {
    cat <<'CONDASTORE_LICENSES'
@LICENSES@
CONDASTORE_LICENSES
}

# Files with a placeholder of the prefix: kind, placeholder (escaped for sed), its length, path.
records() {
    cat <<'CONDASTORE_RECORDS'
@RECORDS@
CONDASTORE_RECORDS
}

payload() {
    tail -c $offset "$self"
}

digest() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum
    elif command -v shasum >/dev/null 2>&1; then shasum -a 256
    elif command -v openssl >/dev/null 2>&1; then openssl dgst -sha256 -r
    else fail "checking this file needs sha256sum, shasum or openssl"
    fi
}

check() {
    found=$(payload | digest)
    [ "${found%% *}" = "$sha256" ] || fail "this file is damaged or incomplete" \
        "Download it again; to resume a partial download use: curl -C -"
}

check_prefix() {
    case $prefix in
        /*) ;;
        *) prefix=$(pwd)/$prefix ;;
    esac
    while [ "$prefix" != "${prefix%/}" ]; do prefix=${prefix%/}; done
    [ -n "$prefix" ] || fail "the prefix cannot be /"
    case $prefix in
        *[[:space:][:cntrl:]\'\"\\\$\`\|\&\;]*)
            fail "the prefix $prefix has a character that breaks programs in it" \
                "Use letters, digits, - _ . and /." ;;
    esac
    [ "${#prefix}" -le $room ] ||
        fail "the prefix $prefix is longer than $room bytes, the limit of its packages"
    if [ -e "$prefix" ] || [ -L "$prefix" ]; then
        [ -d "$prefix" ] || fail "$prefix already exists and is not a folder"
        [ -z "$(ls -A "$prefix")" ] || fail "$prefix is not empty" "Choose a new folder."
        made=no
    else
        made=yes
    fi
}

install_it() {
    if [ $made = yes ]; then
        mkdir -p "$prefix" || fail "$prefix cannot be created"
    fi
    trap undo EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    payload | gzip -dc | (cd "$prefix" && tar -xof -) || fail "unpacking failed: is the disk full?"
    [ -f "$prefix/conda-meta/history" ] || fail "unpacking failed: is the disk full?"
    if [ -x "$prefix/bin/python" ]; then
        "$prefix/bin/python" -E -s -B "$prefix/bin/conda-unpack" ||
            fail "conda-unpack failed"
        own_scripts
    else
        replace
    fi
    rm -f "$prefix/bin/conda-unpack" "$prefix/bin/conda_unpack_progress.py"
    trap - EXIT
}

undo() {
    status=$?
    cd /
    if [ $made = yes ]; then rm -rf "$prefix"
    else rm -rf "$prefix"/* "$prefix"/.[!.]* "$prefix"/..?*
    fi
    exit $status
}

# Scripts in bin/ run with the environment's own python, activated or not.
own_scripts() {
    [ "${#prefix}" -le 110 ] || return 0  # limit of the first line in some kernels
    for file in "$prefix"/bin/*; do
        if [ -L "$file" ] || [ ! -f "$file" ]; then continue; fi
        case $(head -c 22 "$file" | tr -d '\000' | head -n 1) in
            '#!/usr/bin/env python'*)
                sed "1s|^#!/usr/bin/env \(python[0-9.]*\)|#!$prefix/bin/\1|" "$file" >"$file.new"
                cat "$file.new" >"$file"
                rm "$file.new" ;;
        esac
    done
}

# Does the work of conda-unpack without python; binary files need a sed with option -z.
replace() {
    [ $placeholder_files -gt 0 ] || return 0
    tab=$(printf '\t')
    records | while IFS=$tab read -r kind placeholder length path; do
        file=$prefix/$path
        if [ "$kind" = binary ]; then
            has_sed_z || fail "$path needs a sed with option -z (GNU, busybox)"
            padding=$(printf "%$((length - ${#prefix}))s" '' | sed 's/ /\\x00/g')
            sed -z ":a;s|$placeholder\(.*\)|$prefix\1$padding|;ta" "$file" >"$file.new"
        else
            sed "s|$placeholder|$prefix|g" "$file" >"$file.new"
        fi
        cat "$file.new" >"$file"
        rm "$file.new"
    done || fail "the prefix could not be written into all files"
}

has_sed_z() {
    [ "$(printf 'ab\000c' | sed -z 's|a\(.*\)|x\1\x00|' 2>/dev/null | od -An -tx1 | tr -d ' \n')" \
        = 7862000063 ]
}

prefix= batch=no
while [ $# -gt 0 ]; do
    case $1 in
        -p | --prefix)
            [ $# -ge 2 ] || fail "-p needs the folder to install into"
            prefix=$2
            shift ;;
        -b | --batch) batch=yes ;;
        -l | --licenses) licenses; exit 0 ;;
        -t | --test) check; echo "This file is complete."; exit 0 ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$self" | sed '$d'; exit 0 ;;
        *) fail "unknown option $1" "See: sh $self -h" ;;
    esac
    shift
done
[ -n "$prefix" ] || fail "the option -p PREFIX is missing" "Name a new folder. See: sh $self -h"
here="$(uname -s) $(uname -m)"
case "|$system|" in
    *"|$here|"*) ;;
    *) fail "this environment is for @PLATFORM@, but this machine is $here" ;;
esac
for tool in tail gzip tar sed; do
    command -v $tool >/dev/null 2>&1 || fail "installing needs the program $tool"
done
check_prefix
check
if [ $batch = no ]; then
    licenses
    printf '\nDo you agree to these licenses? [yes/no] '
    read -r reply || reply=no
    case $reply in
        y | yes | Y | Yes | YES) ;;
        *) fail "nothing was installed" ;;
    esac
fi
install_it
printf 'Installed into %s\n' "$prefix"
printf 'Activate it: . %s/bin/activate\n' "$prefix"
exit 0
