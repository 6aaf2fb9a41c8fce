"""Which devices can a session run on? One file each, behind `hjgc.runtime.backend.Backend`."""
