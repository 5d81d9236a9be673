//! A receiver in a temporary directory, and the sender that drives it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use towline_block::{
    Disk, Epoch, GroupName, Incarnation, Position, Seq, VolumeId, VolumeName, crc32c,
};
use towline_shipper::batch::{
    BatchBuilder, Chain, Control, Encoder, GroupKey, Keyring, Method, Sealed,
};
use towline_shipper::receiver::{Limits, Promote, ReceiveConfig, Receiver};
use towline_shipper::security::{BoxedConnection, Security, connect};
use towline_shipper::wire::{
    Ack, Hello, Message, PROTOCOL, Refusal, VolumeSize, Welcome, read_message, write_message,
};
use towline_shipper::{GroupUuid, SessionId};

pub const SIZES: [u64; 2] = [1 << 20, 300 * 1024 + 512];

/// Far more than anything takes; reached only by a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts takeovers instead of serving; fails while told to.
#[derive(Default)]
pub struct Served {
    pub calls: AtomicUsize,
    pub volumes: Mutex<Vec<(VolumeName, Arc<dyn Disk>)>>,
    pub fail: Mutex<Option<String>>,
}

impl Promote for Served {
    fn promote(
        &self,
        volumes: &[(VolumeName, Arc<dyn Disk>)],
    ) -> towline_shipper::Result<Vec<String>> {
        if let Some(why) = self.fail.lock().unwrap().as_ref() {
            let kind = towline_shipper::ErrorKind::Storage;
            return Err(towline_shipper::Error::new(kind, why.clone()));
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        *self.volumes.lock().unwrap() = volumes.to_vec();
        Ok(volumes.iter().map(|(name, _)| format!("nbd://here/{name}")).collect())
    }
}

pub struct Lab {
    path: PathBuf,
    /// Removes it in the end.
    _dir: Option<TempDir>,
    pub served: Arc<Served>,
    pub security: Security,
    pub limits: Limits,
    pub group: Option<GroupName>,
    pub keys: Keyring,
}

pub fn name(name: &str) -> VolumeName {
    name.parse().unwrap()
}

pub fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

impl Lab {
    pub fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        Lab { _dir: Some(dir), ..Lab::at(path) }
    }

    /// In a directory of somebody else.
    pub fn at(path: PathBuf) -> Lab {
        Lab {
            path,
            _dir: None,
            served: Arc::default(),
            security: Security::InsecureLoopback,
            limits: Limits::default(),
            group: None,
            keys: Keyring::default(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn state_dir(&self) -> PathBuf {
        self.path.join("state")
    }

    pub fn target(&self, index: usize) -> PathBuf {
        self.path.join(format!("disk{index}.img"))
    }

    pub fn config(&self) -> ReceiveConfig {
        ReceiveConfig {
            listen: Some("127.0.0.1:0".into()),
            from: None,
            state_dir: self.state_dir(),
            group: self.group.clone(),
            targets: vec![(name("disk0"), self.target(0)), (name("disk1"), self.target(1))],
            security: self.security.clone(),
            promote: self.served.clone(),
            limits: self.limits,
            keys: self.keys.clone(),
        }
    }

    pub fn start(&self) -> Receiver {
        Receiver::start(self.config()).unwrap()
    }

    pub fn start_with(
        &self,
        change: impl FnOnce(&mut ReceiveConfig),
    ) -> towline_shipper::Result<Receiver> {
        let mut config = self.config();
        change(&mut config);
        Receiver::start(config)
    }

    pub fn contents(&self, index: usize) -> Vec<u8> {
        std::fs::read(self.target(index)).unwrap()
    }
}

pub fn hello() -> Hello {
    Hello {
        version: PROTOCOL,
        group: group("erp"),
        group_uuid: GroupUuid([9; 16]),
        session: SessionId::random(),
        epoch: Epoch(1),
        key: None,
        volumes: vec![
            VolumeSize { name: name("disk0"), size_bytes: SIZES[0] },
            VolumeSize { name: name("disk1"), size_bytes: SIZES[1] },
        ],
    }
}

pub fn at(seq: u64) -> Position {
    Position::new(Epoch(1), Incarnation(1), Seq(seq))
}

/// A shipper's half of one connection.
pub struct Sender {
    stream: BoxedConnection,
    pub chain: Chain,
    pub welcome: Welcome,
    pub next_seq: u64,
    pub claims_upto: u64,
    pub ack: Ack,
    /// Seals what is cut.
    pub key: Option<GroupKey>,
}

pub async fn dial(lab: &Lab, receiver: &Receiver) -> BoxedConnection {
    connect(&lab.security, &receiver.address().unwrap().to_string(), &group("erp")).await.unwrap()
}

pub async fn receive(stream: &mut BoxedConnection) -> Option<Message> {
    tokio::time::timeout(PATIENCE, read_message(stream)).await.expect("no answer").unwrap()
}

impl Sender {
    pub async fn connect(lab: &Lab, receiver: &Receiver) -> Sender {
        Sender::hello(lab, receiver, hello()).await.expect("refused")
    }

    pub async fn connect_to(lab: &Lab, address: &str) -> Sender {
        let stream = connect(&lab.security, address, &group("erp")).await.unwrap();
        Sender::introduce(stream, hello()).await.expect("refused")
    }

    pub async fn hello(lab: &Lab, receiver: &Receiver, hello: Hello) -> Result<Sender, Refusal> {
        Sender::introduce(dial(lab, receiver).await, hello).await
    }

    pub async fn introduce(mut stream: BoxedConnection, hello: Hello) -> Result<Sender, Refusal> {
        let (group, session) = (hello.group_uuid, hello.session);
        write_message(&mut stream, &Message::Hello(hello)).await.unwrap();
        let welcome = match receive(&mut stream).await {
            Some(Message::Welcome(welcome)) => welcome,
            Some(Message::Error(refusal)) => return Err(refusal),
            other => panic!("expected WELCOME, got {other:?}"),
        };
        let chain = Chain {
            group,
            session,
            number: welcome.number,
            hash: welcome.hash,
            stream_bytes: welcome.stream_bytes,
        };
        let (next_seq, claims_upto) = (welcome.position.seq.0 + 1, welcome.claims_upto);
        let (ack, key) = (Ack::default(), None);
        Ok(Sender { stream, chain, welcome, next_seq, claims_upto, ack, key })
    }

    /// A batch of writes and then control records, each its own seq.
    pub fn cut(&mut self, writes: &[(u16, u64, &[u8])], controls: &[Control]) -> Sealed {
        let mut batch = BatchBuilder::records(at(self.next_seq), self.claims_upto);
        for (volume, offset, bytes) in writes {
            let seq = Seq(self.next_seq);
            batch.write(seq, VolumeId(*volume), *offset, bytes, crc32c(bytes)).unwrap();
            self.next_seq += 1;
        }
        for control in controls {
            batch.control(Seq(self.next_seq), *control, b"").unwrap();
            self.next_seq += 1;
        }
        let mut encoder = Encoder::new(Method::None, self.key.clone());
        let sealed = encoder.encode(batch, &self.chain, 0).unwrap();
        self.chain.advance(&sealed);
        sealed
    }

    /// The connection itself, to break it.
    pub fn stream(&mut self) -> &mut BoxedConnection {
        &mut self.stream
    }

    /// False when the receiver is gone.
    pub async fn try_send(&mut self, message: &Message) -> bool {
        write_message(&mut self.stream, message).await.is_ok()
    }

    pub async fn send(&mut self, message: &Message) {
        write_message(&mut self.stream, message).await.unwrap();
    }

    /// Cuts, sends, and answers the batch's number.
    pub async fn ship(&mut self, writes: &[(u16, u64, &[u8])], controls: &[Control]) -> u64 {
        let sealed = self.cut(writes, controls);
        self.send(&Message::Batch(sealed.bytes)).await;
        sealed.number
    }

    pub async fn acked(&mut self, number: u64) -> Ack {
        self.until(|ack| ack.number >= number).await
    }

    pub async fn applied(&mut self, number: u64) -> Ack {
        self.until(|ack| ack.applied >= number).await
    }

    async fn until(&mut self, enough: impl Fn(&Ack) -> bool) -> Ack {
        while !enough(&self.ack) {
            match receive(&mut self.stream).await {
                Some(Message::Ack(ack)) => self.ack = ack,
                Some(Message::KeepAlive) => {}
                other => panic!("expected ACK, got {other:?}"),
            }
        }
        self.ack
    }

    /// The next message that is neither ACK nor KEEPALIVE.
    pub async fn answer(&mut self) -> Option<Message> {
        loop {
            match receive(&mut self.stream).await {
                Some(Message::Ack(ack)) => self.ack = ack,
                Some(Message::KeepAlive) => {}
                other => return other,
            }
        }
    }

    /// The refusal that ends this connection.
    pub async fn refused(&mut self) -> Refusal {
        let Some(Message::Error(refusal)) = self.answer().await else { panic!("not refused") };
        assert_eq!(self.answer().await, None, "the connection ends after ERROR");
        refusal
    }
}
