//! The driver of the data path.

use super::{BLOCK, Engine, STAGED_BYTES};
use std::fs::File;
use std::sync::Arc;
use towline_block::AlignedBuf;
use towline_block::sys::uring::{Completion, Driver, Fd, Op, Window};

pub struct Uring {
    fd: Fd,
    driver: Driver,
    done: Vec<Completion>,
    bufs: Vec<AlignedBuf>,
    staged: Option<AlignedBuf>,
}

impl Uring {
    fn all(&mut self, blocks: &[u64], depth: usize, op: fn(Fd, u64, Window) -> Op) {
        while self.bufs.len() < depth {
            self.bufs.push(AlignedBuf::new(BLOCK));
        }
        let mut left = blocks.iter();
        loop {
            while self.driver.pending() < depth
                && let Some(at) = left.next()
            {
                let buf = self.bufs.pop().expect("one each");
                let op = op(self.fd.clone(), *at, buf.lend(0, BLOCK));
                self.driver.push(0, op).expect("room in the ring");
            }
            if self.driver.pending() == 0 {
                return;
            }
            self.wait();
        }
    }

    fn wait(&mut self) {
        self.driver.wait(1, None, &mut self.done).expect("a ring");
        for done in self.done.drain(..) {
            done.result.expect("an operation");
            if done.window.len == BLOCK {
                self.bufs.push(AlignedBuf::take_back(done.window));
            } else if done.window.len == STAGED_BYTES {
                self.staged = Some(AlignedBuf::take_back(done.window));
            }
        }
    }
}

impl Engine for Uring {
    fn new(file: File) -> Uring {
        Uring {
            fd: Arc::new(file.into()),
            driver: Driver::new(64).expect("io_uring"),
            done: Vec::new(),
            bufs: Vec::new(),
            staged: Some(AlignedBuf::new(STAGED_BYTES)),
        }
    }

    fn write(&mut self, blocks: &[u64], depth: usize) {
        self.all(blocks, depth, Op::Write);
    }

    fn read(&mut self, blocks: &[u64], depth: usize) {
        self.all(blocks, depth, Op::Read);
    }

    fn stage(&mut self, offset: u64, bytes: usize) {
        let staged = self.staged.take().unwrap_or_default();
        let window = staged.lend(0, bytes);
        self.driver.push(0, Op::Write(self.fd.clone(), offset, window)).expect("room");
        while self.driver.pending() > 0 {
            self.wait();
        }
        if self.staged.is_none() {
            self.staged = Some(AlignedBuf::new(STAGED_BYTES));
        }
        self.driver.push(0, Op::Datasync(self.fd.clone())).expect("room");
        while self.driver.pending() > 0 {
            self.wait();
        }
    }
}
