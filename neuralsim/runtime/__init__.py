"""What every program needs: devices, progress, interrupts, files, optional imports."""
