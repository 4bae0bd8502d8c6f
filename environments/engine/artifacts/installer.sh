#!/bin/sh
# An environment of condastore, lock @LOCK@, for @PLATFORM@.
# It installs what is in this file and nothing else: it neither solves nor downloads.
#
#     sh @FILE@ -p PREFIX        asks for agreement to the licences
#     sh @FILE@ -p PREFIX -b     does not ask
#     sh @FILE@ -l               lists packages and licences
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

licences() {
    cat <<'CONDASTORE_LICENCES'
@LICENCES@
CONDASTORE_LICENCES
}

# kind <tab> placeholder, written for sed <tab> its length <tab> path: what has the prefix in it.
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
    else fail "there is no sha256sum, shasum or openssl to check this file with"
    fi
}

check() {
    found=$(payload | digest)
    [ "${found%% *}" = "$sha256" ] || fail "this file is damaged or incomplete" \
        "Download it again; a cut download is continued by: curl -C -"
}

look_at_prefix() {
    case $prefix in
        /*) ;;
        *) prefix=$(pwd)/$prefix ;;
    esac
    while [ "$prefix" != "${prefix%/}" ]; do prefix=${prefix%/}; done
    [ -n "$prefix" ] || fail "the prefix cannot be /"
    case $prefix in
        *[[:space:][:cntrl:]\'\"\\\$\`\|\&\;]*)
            fail "the prefix $prefix has a character that programs in it could not stand" \
                "Use letters, digits, - _ . and /." ;;
    esac
    [ "${#prefix}" -le $room ] ||
        fail "the prefix $prefix is longer than the $room bytes that its packages have room for"
    if [ -e "$prefix" ] || [ -L "$prefix" ]; then
        [ -d "$prefix" ] || fail "$prefix is there already, and is not a folder"
        [ -z "$(ls -A "$prefix")" ] || fail "$prefix is not empty" "Choose a new folder."
        made=no
    else
        made=yes
    fi
}

install_it() {
    if [ $made = yes ]; then
        mkdir -p "$prefix" || fail "$prefix cannot be made"
    fi
    trap undo EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    payload | gzip -dc | (cd "$prefix" && tar -xof -) || fail "unpacking failed: is the disk full?"
    [ -f "$prefix/conda-meta/history" ] || fail "unpacking failed: is the disk full?"
    if [ -x "$prefix/bin/python" ]; then
        "$prefix/bin/python" -E -s -B "$prefix/bin/conda-unpack" ||
            fail "the environment's python did not finish it"
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
    [ "${#prefix}" -le 110 ] || return 0  # kernels read so much of a first line
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

# What conda-unpack does, where there is no python: needs a sed that knows -z for binary files.
replace() {
    [ $placeholder_files -gt 0 ] || return 0
    tab=$(printf '\t')
    records | while IFS=$tab read -r kind placeholder length path; do
        file=$prefix/$path
        if [ "$kind" = binary ]; then
            knows_z || fail "$path needs a sed that knows -z (GNU, busybox)"
            padding=$(printf "%$((length - ${#prefix}))s" '' | sed 's/ /\\x00/g')
            sed -z ":a;s|$placeholder\(.*\)|$prefix\1$padding|;ta" "$file" >"$file.new"
        else
            sed "s|$placeholder|$prefix|g" "$file" >"$file.new"
        fi
        cat "$file.new" >"$file"
        rm "$file.new"
    done || fail "the prefix could not be written into all files"
}

knows_z() {
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
        -l | --licences) licences; exit 0 ;;
        -t | --test) check; echo "This file is whole."; exit 0 ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$self" | sed '$d'; exit 0 ;;
        *) fail "there is no option $1" "sh $self -h" ;;
    esac
    shift
done
[ -n "$prefix" ] || fail "where to? name a new folder: -p PREFIX" "sh $self -h"
here="$(uname -s) $(uname -m)"
case "|$system|" in
    *"|$here|"*) ;;
    *) fail "this is an environment for @PLATFORM@, and this machine is $here" ;;
esac
for tool in tail gzip tar sed; do
    command -v $tool >/dev/null 2>&1 || fail "installing needs the program $tool"
done
look_at_prefix
check
if [ $batch = no ]; then
    licences
    printf '\nDo you agree to these licences? [yes/no] '
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
