"""What every program needs: device, threads, files, locks, interrupts, progress bars and optional imports."""
