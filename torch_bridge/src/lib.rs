//! torch_bridge
