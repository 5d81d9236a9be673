pub mod relay; pub mod process; pub mod ledger; pub mod tools; pub mod image; pub mod guest_fs;
