//! KRISP allocation.
