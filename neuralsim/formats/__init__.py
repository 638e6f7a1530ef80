"""Other people's datasets in and out: Minari, LeRobotDataset, robomimic HDF5, replay buffers in zarr, folders of video."""
