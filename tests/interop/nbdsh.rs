//! nbdsh with its own checks off: the server's refusals, seen by another's client.

use crate::{served, uri};
use towline_tests::program::{Finished, debian_command, run_command};
use towline_tests::{PATIENCE, require};

const SCRIPT: &str = r"
def expect(codes, call, what):
    try:
        call()
    except nbd.Error as error:
        assert error.errno in codes, what + ': ' + str(error.errno)
        return
    raise AssertionError(what + ': no error')

h.set_strict_mode(0)
size = h.get_size()
block = bytearray(b'\xa5' * 512)
expect(('EINVAL',), lambda: h.pread(512, size), 'read past the end')
expect(('ENOSPC', 'EINVAL'), lambda: h.pwrite(block, size), 'write past the end')
expect(('EINVAL',), lambda: h.pread(512, size - 256), 'read across the end')
expect(('ENOSPC', 'EINVAL'), lambda: h.pwrite(block, size - 256), 'write across the end')
expect(('ENOSPC', 'EINVAL'), lambda: h.zero(512, size), 'zero past the end')
expect(('ENOSPC', 'EINVAL'), lambda: h.trim(512, size), 'trim past the end')
expect(('EINVAL', 'ENOTSUP'), lambda: h.pread(512, 0, 1 << 14), 'unknown flag')

h.pwrite(block, 0, nbd.CMD_FLAG_FUA)
assert h.pread(512, 0) == block
h.pwrite(block, 4096)
h.flush()
h.zero(512, 4096)
assert h.pread(512, 4096) == bytes(512)
h.zero(512, 0, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(512, 0) == bytes(512)
h.trim(65536, 0)
h.shutdown()
print('done')
";

#[track_caller]
fn nbdsh(args: &[&str]) -> Finished {
    let mut command = debian_command("nbdsh");
    command.args(args);
    run_command(command, PATIENCE)
}

#[test]
fn refusals_and_flags_are_the_protocols() {
    require!("nbdsh");
    let rig = served();
    let uri = uri(&rig);
    let said = nbdsh(&["-u", &uri, "-c", SCRIPT]).ok();
    assert_eq!(said.trim(), "done");
}

#[test]
fn a_flush_on_one_connection_covers_writes_of_another() {
    require!("nbdsh");
    let rig = served();
    let uri = uri(&rig);
    let script = format!(
        "a = nbd.NBD(); a.connect_uri('{uri}')\nb = nbd.NBD(); b.connect_uri('{uri}')\n\
         assert a.can_multi_conn()\na.pwrite(b'x' * 4096, 8192)\nb.flush()\n\
         assert b.pread(4096, 8192) == b'x' * 4096\nprint('done')\n"
    );
    assert_eq!(nbdsh(&["-c", &script]).ok().trim(), "done");
}
