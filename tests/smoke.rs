use larder::*;
use serde::{Deserialize, Serialize};
#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct A {
    c: String,
    n: u32,
}
#[test]
fn smoke() {
    let d = tempfile::tempdir().unwrap();
    let p = d.path().join("music");
    let s = Store::open(&p).unwrap();
    assert_eq!(s.put("artist/daft_punk", "epic").unwrap(), None);
    assert_eq!(s.put("artist/daft_punk", "epic2").unwrap().unwrap(), "epic");
    s.flush().unwrap();
    assert_eq!(std::fs::read_dir(p.join("artist")).unwrap().count(), 1);
    for i in 0..20000 {
        s.put(format!("n/Num{i}"), format!("v{i}")).unwrap();
    }
    let c = s.collection::<A>("typed").unwrap();
    c.put("x", A { c: "F".into(), n: 3 }).unwrap();
    println!("{:?}", s.stats());
    s.flush().unwrap();
    println!("{:?} {:?}", s.stats(), s.health());
    assert_eq!(s.get_all("n").unwrap().len(), 20000);
    assert_eq!(s.iter("n").unwrap().count(), 20000);
    println!("{:?}", s.close().unwrap());
    let s = Store::open(&p).unwrap();
    println!("{:?}", s.load_report());
    assert_eq!(s.len("n").unwrap(), 20000);
    let c = s.collection::<A>("typed").unwrap();
    assert_eq!(*c.get("x").unwrap(), A { c: "F".into(), n: 3 });
    assert_eq!(s.delete_all("n").unwrap(), 20000);
    s.flush().unwrap();
    println!("{:?}", s.close().unwrap());
    let s = Store::open(&p).unwrap();
    println!("{:?} {:?}", s.load_report(), s.collections());
    assert!(Store::open(&p).is_err());
    println!("{}", Store::open(&p).unwrap_err());
    drop(s);
    Store::open(&p).unwrap();
}
