use std::time::Instant;
use larder::{Layout, Store};
fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let n: usize = std::env::args().nth(2).map_or(1_000_000, |n| n.parse().unwrap());
    let _ = std::fs::remove_dir_all(&dir);
    let store = Store::options(&dir).layout(Layout::Packed).open().unwrap();
    let t = Instant::now();
    let v = [7u8; 100];
    for i in 0..n { store.put(format!("c{:02}/member-number-{:08}", i % 100, i), &v[..]).unwrap(); }
    println!("put {:?}", t.elapsed());
    store.flush().unwrap();
    println!("durable {:?}", t.elapsed());
    let r = store.close().unwrap();
    println!("closed {:?} {r:?}", t.elapsed());
    let du = || String::from_utf8(std::process::Command::new("du").args(["-sb", &dir]).output().unwrap().stdout).unwrap();
    println!("{}", du());
    for _ in 0..3 {
        let t = Instant::now();
        let store = Store::open(&dir).unwrap();
        println!("load {:?} {:?}", t.elapsed(), store.load_report());
        store.close().unwrap();
    }
    let store = Store::open(&dir).unwrap();
    let t = Instant::now();
    store.compact().unwrap();
    println!("compact {:?} {}", t.elapsed(), du());
    store.close().unwrap();
    for _ in 0..3 {
        let t = Instant::now();
        let store = Store::open(&dir).unwrap();
        println!("load {:?} {:?}", t.elapsed(), store.load_report());
        store.close().unwrap();
    }
    let t = Instant::now();
    larder::convert(&dir, Layout::Files).unwrap();
    println!("to files {:?}", t.elapsed());
    let store = Store::open(&dir).unwrap();
    println!("{:?}", store.load_report());
    store.close().unwrap();
    let t = Instant::now();
    larder::convert(&dir, Layout::Packed).unwrap();
    println!("to packed {:?}", t.elapsed());
    let store = Store::open(&dir).unwrap();
    println!("{:?} {}", store.load_report(), du());
}
