#!/bin/bash
# Makes the image that the Dockerfile begins with where no registry can be reached: Debian from its own archive.
# Needs root, debootstrap and buildah.
#
#     containers/base.sh [NAME]        (default: localhost/debian:bookworm)
set -euo pipefail
name=${1:-localhost/debian:bookworm}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates bookworm "$folder/root"
rm -rf "$folder"/root/var/{cache/apt,lib/apt/lists,log}/*
container=$(buildah from scratch)
buildah add "$container" "$folder/root" / > /dev/null
buildah commit --rm --timestamp "${SOURCE_DATE_EPOCH:-0}" "$container" "$name"
