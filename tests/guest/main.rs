//! A real guest whose power is cut.

mod powercut;
