"""Images and disks: pulls in the background, image collection, disk pressure."""
