#!/bin/bash
# Runs the image as the strictest cluster would, on a real data set: read only, as a user without a name or HOME, without
# network, with 64 MB of /tmp and 1 MB of /dev/shm, in an environment made to break it. Needs root, buildah and Charliecloud.
#
#     containers/test_image.sh IMAGE BIDS_DIR LABEL [options of moesr-bids]
set -euo pipefail
image=$1 data=$(realpath "$2") label=$3
shift 3
uid=23456
folder=$(mktemp -d /var/tmp/moesr-image-XXXXXX)
container=$(buildah from "$image")
root=$(buildah mount "$container")
trap 'buildah rm "$container" > /dev/null; rm -rf "$folder"' EXIT

fail() { echo "test_image: FAILED: $*" >&2; exit 1; }
passed() { echo "test_image: $*"; }

# What is in it, and what is not.
for program in gcc cc g++ make pip git curl; do
    find "$root/usr/bin" "$root/usr/local/bin" "$root/opt/moesr/bin" -name "$program" | grep . && fail "holds $program"
done
for cache in "$root/var/cache/apt/archives" "$root/var/lib/apt/lists" "$root/root/.cache"; do
    [ -z "$(find "$cache" -type f -size +0 2> /dev/null)" ] || fail "$cache holds files"
done
grep -q '"bomFormat": *"CycloneDX"' "$root/opt/moesr/share/sbom.cdx.json" || fail "no bill of materials"
for label_name in title version revision licenses created; do
    buildah inspect "$image" | grep -q "org.opencontainers.image.$label_name" || fail "no label $label_name"
done
passed "holds no compiler, no package manager, no cache; has a bill of materials and its labels"

# A package, a start-up file, a user's folder and libraries that break whoever takes them.
mkdir -p "$folder"/{image,out,work,hostile/lib,user/lib/python3.11/site-packages}
echo 'raise ImportError("a foreign numpy")' | tee "$folder/hostile/numpy.py" > "$folder/hostile/sitecustomize.py"
cp "$folder/hostile/numpy.py" "$folder/user/lib/python3.11/site-packages/"
for library in libz.so.1 libstdc++.so.6 libgomp.so.1 libcrypto.so.3; do echo broken > "$folder/hostile/lib/$library"; done
chown -R $uid:$uid "$folder"
chmod 755 "$folder"
export root data folder uid

# limited MEGABYTES_OF_SHM COMMAND...: 0 is no /dev/shm that can be written.
limited() {
    local shm=$1
    shift
    unshare --mount --net --propagation private bash -c '
        shm=$1; shift
        mount --bind "$root" "$folder/image"  # its own folder is for root alone
        mount -t tmpfs -o size=64m,mode=1777 tmpfs /tmp
        if [ "$shm" = 0 ]; then mount -t tmpfs -o size=1m,ro tmpfs /dev/shm
        else mount -t tmpfs -o size="$shm"m,mode=1777 tmpfs /dev/shm; fi
        exec setpriv --reuid $uid --regid $uid --clear-groups env --ignore-environment \
            PATH="$PATH" USER=someone \
            PYTHONPATH=/work/hostile PYTHONUSERBASE=/work/user LD_LIBRARY_PATH=/work/hostile/lib PYTHONSTARTUP=/none \
            ch-run --no-passwd --unset-env=HOME --set-env="$folder/environment" \
            --bind "$data:/data" --bind "$folder/out:/out" --bind "$folder:/work" "$folder/image" -- "$@"
    ' moesr "$shm" "$@"
}
buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$image" | grep = > "$folder/environment"

limited 1 moesr check /data /out -w /work/work --device cpu || fail "moesr check"
limited 1 bids-validator-deno --version || fail "bids-validator-deno"
passed "moesr check finds no fault under the limits; the validator starts"

started=$(date +%s)
limited 1 moesr-bids /data /out participant --participant-label "$label" -w /work/work --device cpu "$@" || fail "participant"
limited 1 moesr-bids /data /out group || fail "group"
main=$(find "$folder/out" -name '*_desc-moesr_T1w.json' | head -1)
[ -n "$main" ] || fail "no super-resolved image"
[ "$(stat -c %u "$main")" = $uid ] || fail "outputs belong to another user"
grep -q '"Container"' "$folder/out/dataset_description.json" || fail "the container is not named"
grep -E '"(file://)?/data' "$folder/out/dataset_description.json" "$main" && fail "a path of the container is recorded"
[ -s "$folder/out/group.html" ] || fail "no page of the cohort"
passed "participant and group level under the limits, $(($(date +%s) - started)) s"

code=0
limited 0 moesr-bids /data /out participant --participant-label "$label" -w /work/other --device cpu > "$folder/log" 2>&1 || code=$?
[ $code = 2 ] && grep -q "/dev/shm, which parallel processes need" "$folder/log" || fail "no /dev/shm: $(cat "$folder/log")"
passed "without a writable /dev/shm it says what to do"
