"""What a machine's kernel shows and allows: processes, threads, disks, sockets, private folders. Knows no lease."""
