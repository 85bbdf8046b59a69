/* Writes the content of a cloop to standard output, as the module's device would give it. */

#include <fcntl.h>

int main(int argc, char *argv[])
{
	static struct cloop_device device, *devices[] = {&device};
	struct stat status;
	struct gendisk disk = {0};
	int fd = argc == 2 ? open(argv[1], O_RDONLY) : -1;

	if (fd < 0 || fstat(fd, &status))
		return 2;
	struct inode inode = {status.st_mode, status.st_size};
	struct dentry dentry = {{argv[1]}, &inode};
	struct file cloop = {{&dentry}, NULL, fd};
	device.clo_disk = &disk;
	cloop_dev = devices;
	if (cloop_set_file(0, &cloop))
		return 1;
	for (unsigned int i = 0; i < device.head.num_blocks; i++) {
		int n = cloop_load_buffer(&device, i);
		if (n < 0)
			return 1;
		if (fwrite(device.buffer[n], device.head.block_size, 1, stdout) != 1)
			return 2;
	}
	return fflush(stdout) || disk.capacity * 512 != (uint64_t)device.head.num_blocks * device.head.block_size;
}
