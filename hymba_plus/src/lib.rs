//! hymba_plus
