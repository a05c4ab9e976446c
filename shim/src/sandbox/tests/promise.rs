//! What a pod is promised, and a machine that follows.

use super::*;

const MIB: u64 = 1 << 20;

impl Fixture {
    /// Promises this; the guest's vCPUs and the MiB that were added to its memory then.
    async fn promised(&self, change: PodResize) -> Result<(u32, u64)> {
        self.sandbox.promise(change).await?;
        let (vcpus, bytes) = *self.guest.size.lock().unwrap();
        Ok((vcpus, bytes / MIB))
    }
}

fn memory(mib: u64) -> PodResize {
    PodResize { memory: Some(mib * MIB), ..PodResize::default() }
}

fn cpus(quota: u64) -> PodResize {
    PodResize { cpu_quota: Some(quota), ..PodResize::default() }
}

#[tokio::test]
async fn what_a_change_does_not_name_stays_promised() {
    let f = fixture().await;
    let both = PodResize { cpu_period: Some(50_000), ..cpus(100_000) };
    let both = PodResize { memory: Some(256 * MIB), ..both };
    assert_eq!(f.promised(both).await.unwrap(), (2, 256));
    assert_eq!(f.promised(cpus(150_000)).await.unwrap(), (3, 256));
    assert_eq!(f.promised(memory(400)).await.unwrap(), (3, 384));
    assert_eq!(f.promised(PodResize::default()).await.unwrap(), (3, 384));
    assert_eq!(f.promised(memory(200)).await.unwrap(), (3, 256), "a part of a block is one");
    assert_eq!(f.promised(memory(0)).await.unwrap(), (3, 0), "no limit any more");
    assert_eq!(f.promised(cpus(0)).await.unwrap(), (1, 0));
    f.sandbox.stop().await;
}

#[tokio::test]
async fn what_can_not_be_promised_leaves_what_was() {
    let f = fixture().await;
    assert_eq!(f.promised(memory(256)).await.unwrap(), (1, 256));
    let error = f.promised(memory(1024)).await.unwrap_err();
    assert!(error.to_string().contains("the host has no memory"), "{error}");
    assert_eq!(f.promised(cpus(200_000)).await.unwrap(), (2, 256));
    f.sandbox.stop().await;
}

#[tokio::test]
async fn what_a_container_had_goes_when_it_leaves() {
    let f = fixture().await;
    let size = || {
        let (vcpus, bytes) = *f.guest.size.lock().unwrap();
        (vcpus, bytes / MIB)
    };
    for id in ["c", "d"] {
        let mut new = f.container(id, "sh");
        let mut spec = serde_json::to_value(&new.spec).unwrap();
        spec["linux"]["resources"] =
            serde_json::json!({"memory": {"limit": 128 * MIB}, "cpu": {"quota": 100_000}});
        new.spec = serde_json::from_value(spec).unwrap();
        f.sandbox.create(new).await.unwrap();
    }
    assert_eq!(size(), (2, 256));
    f.sandbox.delete("d", "").await.unwrap();
    // Nobody waits for that.
    for _ in 0..200 {
        if size() == (1, 128) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(size(), (1, 128));
    f.sandbox.stop().await;
}
