//! A hand-written NBD client that can do everything wrong, too.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use towline_proxy::nbd::proto::{self, command, option, option_reply};

/// Bound on any wait of a test for the server; far above what a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
    cookie: u64,
}

/// One answer, of either style.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    pub error: u32,
    /// Text of a structured error.
    pub text: String,
    /// Type of a structured chunk, 0 of a simple reply.
    pub kind: u16,
    pub payload: Vec<u8>,
}

impl Client {
    /// Connected, nothing said.
    pub fn connect(path: &Path) -> Client {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, structured: false, cookie: 0 }
    }

    /// Greeted.
    pub fn greeted(path: &Path) -> Client {
        let mut client = Client::connect(path);
        assert_eq!(&client.take::<18>(), b"NBDMAGICIHAVEOPT\x00\x03");
        client.send(&3u32.to_be_bytes());
        client
    }

    /// In transmission, simple replies.
    pub fn simple(path: &Path, export: &str) -> Client {
        let mut client = Client::greeted(path);
        let replies = client.option(option::GO, &go(export));
        assert_eq!(replies.last().unwrap().0, option_reply::ACK, "{replies:?}");
        client
    }

    /// In transmission, structured replies and block status.
    pub fn structured(path: &Path, export: &str) -> Client {
        let mut client = Client::greeted(path);
        client.option(option::STRUCTURED_REPLY, &[]);
        let replies =
            client.option(option::SET_META_CONTEXT, &contexts(export, &["base:allocation"]));
        assert_eq!(replies[0].0, option_reply::META_CONTEXT);
        let replies = client.option(option::GO, &go(export));
        assert_eq!(replies.last().unwrap().0, option_reply::ACK, "{replies:?}");
        client.structured = true;
        client
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn take_vec(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads to the end; a reset counts as one.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
                panic!("the server neither sends nor closes: {error}")
            }
            _ => bytes,
        }
    }

    pub fn is_dropped(&mut self) -> bool {
        self.rest().is_empty()
    }

    /// Sends an option and takes all its replies.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send(&option_bytes(option, data));
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.take::<8>(), proto::OPTION_REPLY_MAGIC.to_be_bytes());
            assert_eq!(u32::from_be_bytes(self.take()), option);
            let kind = u32::from_be_bytes(self.take());
            let length = u32::from_be_bytes(self.take()) as usize;
            replies.push((kind, self.take_vec(length)));
            if kind == option_reply::ACK || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    /// Sends a request; its cookie.
    pub fn request(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u64 {
        self.cookie += 1;
        let mut bytes = request_bytes(command, flags, self.cookie, offset, len);
        bytes.extend_from_slice(data);
        self.send(&bytes);
        self.cookie
    }

    /// Takes one answer; `read_len` is the data of a simple reply to a read.
    pub fn answer(&mut self, read_len: usize) -> Answer {
        let magic = u32::from_be_bytes(self.take());
        if magic == proto::SIMPLE_REPLY_MAGIC {
            let error = u32::from_be_bytes(self.take());
            let cookie = u64::from_be_bytes(self.take());
            assert!(!self.structured || read_len == 0, "simple reply to a structured read");
            let payload = if error == 0 { self.take_vec(read_len) } else { Vec::new() };
            return Answer { cookie, error, text: String::new(), kind: 0, payload };
        }
        assert_eq!(magic, proto::STRUCTURED_REPLY_MAGIC);
        assert!(self.structured, "structured reply that was not negotiated");
        assert_eq!(u16::from_be_bytes(self.take()), proto::chunk::FLAG_DONE);
        let kind = u16::from_be_bytes(self.take());
        let cookie = u64::from_be_bytes(self.take());
        let length = u32::from_be_bytes(self.take()) as usize;
        let payload = self.take_vec(length);
        if kind != proto::chunk::ERROR {
            return Answer { cookie, error: 0, text: String::new(), kind, payload };
        }
        let error = u32::from_be_bytes(payload[..4].try_into().unwrap());
        let text_len = usize::from(u16::from_be_bytes(payload[4..6].try_into().unwrap()));
        assert_eq!(payload.len(), 6 + text_len);
        let text = String::from_utf8(payload[6..].to_vec()).unwrap();
        Answer { cookie, error, text, kind, payload: Vec::new() }
    }

    fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> Answer {
        let cookie = self.request(command, flags, offset, len, data);
        let read_len = if command == command::READ { len as usize } else { 0 };
        let read_len = if self.structured { 0 } else { read_len };
        let answer = self.answer(read_len);
        assert_eq!(answer.cookie, cookie);
        answer
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, Answer> {
        let mut answer = self.ask(command::READ, 0, offset, len, &[]);
        if answer.error != 0 {
            return Err(answer);
        }
        if self.structured && len > 0 {
            assert_eq!(answer.kind, proto::chunk::OFFSET_DATA);
            assert_eq!(answer.payload[..8], offset.to_be_bytes());
            answer.payload.drain(..8);
        }
        assert_eq!(answer.payload.len(), len as usize);
        Ok(answer.payload)
    }

    pub fn change(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> u32 {
        self.ask(command, flags, offset, len, &[]).error
    }

    pub fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        self.ask(command::WRITE, flags, offset, data.len() as u32, data).error
    }

    pub fn flush(&mut self) -> u32 {
        self.change(command::FLUSH, 0, 0, 0)
    }

    /// Runs as (length, status).
    pub fn status(&mut self, flags: u16, offset: u64, len: u32) -> Result<Vec<(u32, u32)>, u32> {
        let answer = self.ask(command::BLOCK_STATUS, flags, offset, len, &[]);
        if answer.error != 0 {
            return Err(answer.error);
        }
        assert_eq!(answer.kind, proto::chunk::BLOCK_STATUS);
        let (words, rest) = answer.payload.as_chunks::<4>();
        assert!(rest.is_empty());
        let words: Vec<u32> = words.iter().map(|word| u32::from_be_bytes(*word)).collect();
        assert_eq!(words[0], proto::ALLOCATION_CONTEXT_ID);
        Ok(words[1..].chunks(2).map(|run| (run[0], run[1])).collect())
    }

    pub fn disconnect(&mut self) {
        self.request(command::DISC, 0, 0, 0, &[]);
    }
}

pub fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = proto::OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub fn request_bytes(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = proto::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

pub fn go(name: &str) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(0u16.to_be_bytes());
    data
}

pub fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}
