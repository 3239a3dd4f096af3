#[derive(Default)] pub struct ProfileStore; 
impl ProfileStore { pub fn curve(&self, _: crate::launch::Fingerprint) -> Option<std::sync::Arc<super::Curve>> { None } }
