#!/bin/bash
# The first process: finds the disk and hands over to the /init on it.
export LD_LIBRARY_PATH=/lib PATH=/bin
mount -n -t proc proc /proc
mount -n -t devtmpfs dev /dev
for module in virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
  insmod "/mods/$module.ko"
done
mount -n -t ext4 -o noatime /dev/vda /mnt
mount -n --move /dev /mnt/dev
mount -n --move /proc /mnt/proc
exec switch_root /mnt /init
