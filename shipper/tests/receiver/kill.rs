//! A real receiver, killed for real: only its recovery runs, and what it finds is
//! a prefix of the history with everything that was acknowledged.

use crate::lab::{Lab, SIZES, Sender};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use towline_shipper::batch::Control;
use towline_shipper::receiver::{Receiver, recover};
use towline_shipper::wire::Message;

const CHILD: &str = "TOWLINE_TEST_RECEIVER_DIR";
const ROUNDS: u64 = 8;
const SLOT: u64 = 4096;

/// Not a test: the body of the child process, when it is one.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let receiver = Receiver::start(Lab::at(dir.into()).config()).unwrap();
    println!("\naddress {}", receiver.address().unwrap());
    // Until it is killed, or its parent is gone.
    let _ = std::io::stdin().lines().count();
}

/// A child that is ended by its process id, whatever happens.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(lab: &Lab) -> (Killed, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--nocapture"])
        .env(CHILD, lab.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let child = Killed(child);
    let address = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("address ")?.parse().ok())
        .expect("the child did not start");
    (child, address)
}

/// Both volumes after batch `number`.
fn expected(number: u64) -> [Vec<u8>; 2] {
    let mut volumes = SIZES.map(|size| vec![0; size as usize]);
    for n in 1..=number {
        for (offset, volume) in slots(n).into_iter().zip(&mut volumes) {
            volume[offset as usize..(offset + SLOT) as usize].fill(n as u8);
        }
    }
    volumes
}

/// Where batch `n` writes on each volume.
fn slots(n: u64) -> [u64; 2] {
    [n * 7 % (SIZES[0] / SLOT) * SLOT, n * 5 % (SIZES[1] / SLOT) * SLOT]
}

async fn ship(sender: &mut Sender) -> Option<u64> {
    let number = sender.chain.number + 1;
    let bytes = [number as u8; SLOT as usize];
    let [first, second] = slots(number);
    let controls: &[Control] = match number % 10 {
        0 => &[Control::Break],
        1 | 5 => &[Control::Heal],
        _ => &[],
    };
    let sealed = sender.cut(&[(0, first, &bytes), (1, second, &bytes)], controls);
    sender.try_send(&Message::Batch(sealed.bytes)).await.then_some(number)
}

#[tokio::test]
async fn a_killed_receiver_recovers_to_a_prefix_with_everything_acknowledged() {
    let lab = Lab::new();
    for round in 0..ROUNDS {
        let (mut child, address) = start(&lab);
        let mut sender = Sender::connect_to(&lab, &address.to_string()).await;
        // Killed while batches are on their way, after a round's own number of them.
        for _ in 0..10 + round * 3 {
            ship(&mut sender).await.unwrap();
        }
        let acked = sender.acked(sender.welcome.number + 1 + round * 2).await.number;
        child.0.kill().unwrap();
        while ship(&mut sender).await.is_some() {}
        drop(child);
        let found = recover(&lab.state_dir(), &lab.keys).unwrap().unwrap();
        assert!(found.number >= acked, "{acked} was acknowledged, {} is here", found.number);
        let volumes = [lab.contents(0), lab.contents(1)];
        assert!(volumes == expected(found.number), "not the prefix up to {}", found.number);
    }
}
