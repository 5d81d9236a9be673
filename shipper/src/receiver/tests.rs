//! What crashes leave, and what recovery makes of it.
