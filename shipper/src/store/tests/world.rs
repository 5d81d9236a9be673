//! A seeded world: several shippers, some dead, with objects on their way that may land
//! at any moment, also in the middle of somebody else's takeover; readers beside them.

use super::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::VecDeque;

/// Objects that one shipper may have on their way: as many as the format allows.
const FLYING_MAX: usize = crate::store::AHEAD_MAX as usize;

/// An object on its way.
struct Flying {
    made: Made,
    /// Once it landed: whether it is what lies there.
    landed: Option<bool>,
}

/// The shelf, on which anything that flies may land before any request.
struct World {
    shelf: Shelf,
    flying: Mutex<Vec<Flying>>,
    rng: Mutex<StdRng>,
}

impl World {
    fn roll(&self, sides: usize) -> usize {
        self.rng.lock().unwrap().random_range(0..sides)
    }

    fn land_some(&self) {
        while self.roll(3) == 0 {
            let open: Vec<usize> = {
                let flying = self.flying.lock().unwrap();
                (0..flying.len()).filter(|at| flying[*at].landed.is_none()).collect()
            };
            if open.is_empty() {
                return;
            }
            self.land(open[self.roll(open.len())]);
        }
    }

    fn land(&self, at: usize) {
        let flying = &mut self.flying.lock().unwrap()[at];
        let (name, bytes) = flying.made.as_put();
        self.shelf.put_if_absent(&name, bytes.clone());
        flying.landed = Some(self.shelf.get(&name, None) == Some(bytes));
    }
}

impl Bucket for World {
    fn create<'a>(&'a self, name: &'a str, bytes: Bytes) -> Answer<'a, Created> {
        self.land_some();
        self.shelf.create(name, bytes)
    }

    fn read<'a>(
        &'a self,
        name: &'a str,
        first: Option<u64>,
        max: u64,
    ) -> Answer<'a, Option<Bytes>> {
        self.land_some();
        self.shelf.read(name, first, max)
    }
}

struct Shipper {
    writer: Writer,
    session: SessionId,
    /// Its objects that are not acknowledged, as indexes of what flies.
    window: VecDeque<usize>,
}

/// Runs one history; answers how many batches were acknowledged and how many sessions it took.
async fn history(seed: u64) -> (usize, u32) {
    let world = Arc::new(World {
        shelf: Shelf::default(),
        flying: Mutex::default(),
        rng: Mutex::new(StdRng::seed_from_u64(seed)),
    });
    let bucket: Arc<dyn Bucket> = world.clone();
    let mut shippers: Vec<Shipper> = Vec::new();
    let mut acked: BTreeMap<u64, crate::BatchHash> = BTreeMap::new();
    let (mut seen, mut reader) = (Vec::new(), None);
    let mut born = 0_u8;
    let mut sessions = 0;
    for _ in 0..150 {
        match world.roll(20) {
            0 if born < 12 => {
                born += 1;
                if world.roll(2) == 0 && !shippers.is_empty() {
                    // Killed: what flies may still land.
                    shippers.remove(world.roll(shippers.len()));
                }
                let session = SessionId([born; 16]);
                let writer = Writer::take_over(&bucket, &group(session)).await.unwrap();
                sessions = writer.session();
                if let Some((number, hash)) = acked.last_key_value() {
                    let at = writer.after();
                    assert!(at.number >= *number, "seed {seed}: batch {number} was acknowledged");
                    assert!(
                        at.number > *number || at.hash == *hash,
                        "seed {seed}: another {number}"
                    );
                }
                shippers.push(Shipper { writer, session, window: VecDeque::new() });
            }
            1 | 2 => {
                let from = seen.len() as u64 + 1;
                if reader.is_none() || world.roll(4) == 0 {
                    reader = Some(Reader::open(bucket.clone(), GROUP, from).await.unwrap());
                }
                let reader = reader.as_mut().unwrap();
                if let Found::Batches(batches) = reader.next().await.unwrap() {
                    seen.extend(batches);
                }
            }
            3..9 if !shippers.is_empty() => {
                let at = world.roll(shippers.len());
                let shipper = &mut shippers[at];
                if shipper.window.len() < FLYING_MAX {
                    for _ in 0..=world.roll(2) {
                        shipper.writer.push(&batch(shipper.writer.after(), shipper.session, None));
                    }
                    let made = shipper.writer.make().unwrap();
                    let mut flying = world.flying.lock().unwrap();
                    shipper.window.push_back(flying.len());
                    flying.push(Flying { made, landed: None });
                }
            }
            9..14 => world.land_some(),
            _ if !shippers.is_empty() => {
                let at = world.roll(shippers.len());
                if !hear(&world, &mut shippers[at], &mut acked, seed) {
                    shippers.remove(at);
                }
            }
            _ => {}
        }
    }
    let all = read_all(&bucket, 1).await.unwrap();
    assert_eq!(seen, all[..seen.len()], "seed {seed}: a reader saw what is not so in the end");
    let mut stream = Stream::default();
    for bytes in &all {
        let keys = crate::batch::Keyring::default();
        let opened = crate::batch::Batch::open(bytes.to_vec(), &keys).unwrap();
        stream = stream.follow(GROUP, &opened.view()).unwrap_or_else(|refusal| {
            panic!("seed {seed}: the chain is broken: {}", refusal.message)
        });
        if let Some(hash) = acked.remove(&stream.number) {
            assert_eq!(hash, stream.hash, "seed {seed}: batch {} was another", stream.number);
        }
    }
    assert!(acked.is_empty(), "seed {seed}: acknowledged and gone: {acked:?}");
    (all.len(), sessions)
}

/// The shipper hears what became of its oldest object; false when it was taken over.
fn hear(
    world: &World,
    shipper: &mut Shipper,
    acked: &mut BTreeMap<u64, crate::BatchHash>,
    seed: u64,
) -> bool {
    while let Some(at) = shipper.window.front().copied() {
        let (landed, after) = {
            let flying = &world.flying.lock().unwrap()[at];
            (flying.landed, flying.made.after.clone())
        };
        match landed {
            None => return true,
            Some(false) => return false,
            Some(true) => {
                shipper.window.pop_front();
                let before = acked.insert(after.number, after.hash);
                assert!(before.is_none_or(|hash| hash == after.hash), "seed {seed}: two of them");
            }
        }
    }
    true
}

#[tokio::test]
async fn what_was_acknowledged_stays_whoever_dies_lives_on_or_writes_late() {
    let (mut batches, mut sessions) = (0, 0);
    for seed in 0..400 {
        let (read, taken) = history(seed).await;
        batches += read;
        sessions += taken;
    }
    assert!(batches > 4000 && sessions > 1000, "{batches} batches, {sessions} sessions: too tame");
}
