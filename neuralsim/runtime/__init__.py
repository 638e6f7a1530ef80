"""Services for every program: device, threads, files, locks, interrupts, progress bars and optional imports."""
