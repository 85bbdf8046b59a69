/* What cloop.c of Debian's package cloop-src asks of the kernel, for the parts of it that find blocks
 * in a file and decode them, in user space. The codecs are the libraries of Debian; of xz only what
 * the kernel's decoder (XZ Embedded) takes: no check or CRC-32. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <lz4.h>
#include <lzma.h>
#include <lzo/lzo1x.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#define uncompress module_uncompress /* zlib has one, too */

#define CONFIG_ZLIB_INFLATE 1
#define CONFIG_LZO_DECOMPRESS 1
#define CONFIG_DECOMPRESS_LZ4 1
#define CONFIG_DECOMPRESS_XZ 1
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)

#define KERN_ERR ""
#define KERN_WARNING ""
#define KERN_INFO ""
#define printk(...) fprintf(stderr, __VA_ARGS__)
#define DEBUGP(...)
#define MIN(x, y) ((x) < (y) ? (x) : (y))
#define PAGE_SIZE 4096
#define GFP_KERNEL 0
#define vmalloc malloc
#define vfree free
#define kfree free
#define kstrdup(text, flags) ((unsigned char *)strdup(text))
#define be64_to_cpu be64toh

typedef uint64_t sector_t;
typedef int spinlock_t;
struct mutex { int unused; };
struct blk_mq_tag_set { int unused; };
struct request_queue { int unused; };
struct block_device { int unused; };
struct gendisk { sector_t capacity; };
struct inode { mode_t i_mode; loff_t i_size; };
struct dentry { struct { const char *name; } d_name; struct inode *d_inode; };
struct file { struct { struct dentry *dentry; } f_path; struct { struct inode *host; } *f_mapping; int fd; };

/* Of block devices, which no test has. */
#define I_BDEV(inode) NULL
#define bdev_get_queue(device) NULL
#define block_size(device) PAGE_SIZE
#define queue_max_hw_sectors(queue) 0
#define queue_max_segments(queue) 0
#define queue_max_segment_size(queue) 0
#define queue_segment_boundary(queue) 0
#define blk_queue_max_hw_sectors(queue, value) (void)(queue)
#define blk_queue_max_segments(queue, value) (void)(queue)
#define blk_queue_max_segment_size(queue, value) (void)(queue)
#define blk_queue_segment_boundary(queue, value) (void)(queue)
#define set_capacity(disk, sectors) ((disk)->capacity = (sectors))

static ssize_t kernel_read(struct file *f, void *buf, size_t size, loff_t *pos)
{
	ssize_t done = pread(f->fd, buf, size, *pos);
	if (done > 0)
		*pos += done;
	return done;
}

struct kernel_z_stream { z_stream; void *workspace; }; /* -fms-extensions */
static int zlib_inflateInit(void *stream)
{
	return inflateInit((z_streamp)stream);
}
#define z_stream struct kernel_z_stream
#define zlib_inflate_workspacesize() 1
#define zlib_inflateReset(stream) inflateReset((z_streamp)(stream))
#define zlib_inflateEnd(stream) inflateEnd((z_streamp)(stream))
#define zlib_inflate(stream, flush) inflate((z_streamp)(stream), flush)

#define lzo1x_decompress_safe(in, length, out, room) \
	(lzo1x_decompress_safe)((const lzo_bytep)(in), length, (lzo_bytep)(out), (lzo_uintp)(room), NULL)
#define LZ4_decompress_safe(in, out, length, room) \
	(LZ4_decompress_safe)((const char *)(in), (char *)(out), length, room)

enum xz_ret { XZ_OK, XZ_STREAM_END, XZ_OPTIONS_ERROR, XZ_DATA_ERROR };
enum { XZ_SINGLE };
struct xz_dec { int unused; };
struct xz_buf { const uint8_t *in; size_t in_pos, in_size; uint8_t *out; size_t out_pos, out_size; };
#define xz_dec_init(mode, dictionary) NULL
#define xz_dec_reset(state)

static enum xz_ret xz_dec_run(struct xz_dec *state, struct xz_buf *b)
{
	uint64_t memory = UINT64_MAX;
	(void)state;
	if (b->in_size < 12 || b->in[7] > LZMA_CHECK_CRC32)
		return XZ_OPTIONS_ERROR;
	return lzma_stream_buffer_decode(&memory, 0, NULL, b->in, &b->in_pos, b->in_size, b->out,
					 &b->out_pos, b->out_size) == LZMA_OK ? XZ_STREAM_END : XZ_DATA_ERROR;
}

static const char *cloop_name = "cloop";
static char *file = "";
static unsigned int preload = 0, buffers = 16 * 65536;
