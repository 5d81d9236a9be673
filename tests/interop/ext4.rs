//! A real file system on a loop device on FUSE on NBD on the proxy.

use crate::{served, uri};
use std::path::Path;
use towline_tests::{PATIENCE, require, require_that, run};

/// Everything in one shell, so that its exit trap undoes the mounts in order,
/// whatever fails in between. $1 URI, $2 folder.
const SCRIPT: &str = r#"
set -eu
uri=$1
folder=$2
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$folder/fuse" "$folder/mnt"
loop=
fuse=
finish() {
    status=$?
    mountpoint -q "$folder/mnt" && umount "$folder/mnt"
    [ -z "$loop" ] || losetup -d "$loop"
    # The loop device lets go of the file a moment after its end.
    tries=0
    until umount "$folder/fuse" 2>/dev/null || ! mountpoint -q "$folder/fuse" || [ $tries = 50 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    [ -z "$fuse" ] || wait "$fuse" || true
    exit $status
}
trap finish EXIT
nbdfuse "$folder/fuse" "$uri" &
fuse=$!
tries=0
until [ -e "$folder/fuse/nbd" ]; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || { echo "nbdfuse did not mount" >&2; exit 1; }
    sleep 0.05
done
loop=$(losetup -f --show "$folder/fuse/nbd")
mkfs.ext4 -q -F "$loop"
mount "$loop" "$folder/mnt"
head -c 8388608 /dev/urandom >"$folder/mnt/large"
mkdir "$folder/mnt/many"
for n in $(seq 50); do echo "$n" >"$folder/mnt/many/$n"; done
sync -f "$folder/mnt"
sum=$(sha256sum <"$folder/mnt/large")
umount "$folder/mnt"
e2fsck -fn "$loop" >&2
mount "$loop" "$folder/mnt"
[ "$(sha256sum <"$folder/mnt/large")" = "$sum" ]
[ "$(ls "$folder/mnt/many" | wc -l)" = 50 ]
echo done
"#;

#[test]
fn a_loop_mounted_ext4_keeps_its_files_and_is_clean() {
    require!("nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "mountpoint");
    require_that!(Path::new("/dev/fuse").exists(), "there is no /dev/fuse");
    require_that!(Path::new("/dev/loop-control").exists(), "there are no loop devices");
    let id = run("id", ["-u"], PATIENCE).ok();
    require_that!(id.trim() == "0", "mounting needs root");
    let rig = served();
    let (uri, folder) = (uri(&rig), rig.path("fs"));
    let args = ["-c".as_ref(), SCRIPT.as_ref(), "ext4".as_ref(), uri.as_ref(), folder.as_os_str()];
    let finished = run("sh", args, PATIENCE);
    assert_eq!(finished.ok().trim(), "done");
    // The source alone is a good file system: nothing of Towline is needed to read it.
    let source = rig.source("disk0");
    run("e2fsck", ["-fn".as_ref(), source.as_os_str()], PATIENCE).ok();
}
