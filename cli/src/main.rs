mod config; mod daemon; mod exit; mod logging; mod metrics; mod output; mod parts; mod prerequisite; mod signals; mod report; mod table; mod demo;
fn main() {}
