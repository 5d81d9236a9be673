//! qemu-img: convert and compare, in and out.

use crate::{DISK_BYTES, noise, served, uri, write_file};
use towline_tests::{PATIENCE, args, require, run};

#[test]
fn an_image_converted_in_compares_equal_and_converts_out_equal() {
    require!("qemu-img");
    let rig = served();
    let image = rig.path("image.raw");
    // Data, a hole, data: qemu-img writes zeroes for the hole.
    let mut data = noise(DISK_BYTES as usize, 3);
    data[8 << 20..40 << 20].fill(0);
    write_file(&image, &data);
    let uri = uri(&rig);
    let convert = args!["convert", "-n", "-f", "raw", "-O", "raw", &image, &uri];
    run("qemu-img", convert, PATIENCE).ok();
    run("qemu-img", args!["compare", "-f", "raw", "-F", "raw", &image, &uri], PATIENCE).ok();
    let back = rig.path("back.qcow2");
    run("qemu-img", args!["convert", "-f", "raw", "-O", "qcow2", &uri, &back], PATIENCE).ok();
    run("qemu-img", args!["compare", "-f", "raw", "-F", "qcow2", &image, &back], PATIENCE).ok();
    assert!(std::fs::read(rig.source("disk0")).unwrap() == data, "the source is the image");
}

#[test]
fn out_of_order_writes_of_eight_coroutines_arrive() {
    require!("qemu-img");
    let rig = served();
    let image = rig.path("image.raw");
    write_file(&image, &noise(DISK_BYTES as usize, 4));
    let uri = uri(&rig);
    let convert = args!["convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", &image, &uri];
    run("qemu-img", convert, PATIENCE).ok();
    run("qemu-img", args!["compare", "-f", "raw", "-F", "raw", &image, &uri], PATIENCE).ok();
}

#[test]
fn the_benchmark_with_flushes_runs() {
    require!("qemu-img");
    let rig = served();
    let bench = args![
        "bench",
        "-f",
        "raw",
        "-c",
        "500",
        "-d",
        "16",
        "-s",
        "4096",
        "-w",
        "--flush-interval",
        "50",
        uri(&rig)
    ];
    run("qemu-img", bench, PATIENCE).ok();
}

#[test]
fn info_tells_the_size() {
    require!("qemu-img");
    let rig = served();
    let info = run("qemu-img", args!["info", "--output=json", uri(&rig)], PATIENCE).ok();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"], DISK_BYTES, "{info}");
}
