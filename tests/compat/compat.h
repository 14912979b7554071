/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What both 32-bit programs need: memory that ends where a structure does, and
 * a way to say what is wrong.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <unistd.h>

_Static_assert(sizeof(void *) == 4, "this is about 32-bit programs");

#define PAGE 4096
#define FILL 0xa5
#define SIZE (4u << 20)
#define BLOCK 65536u
#define BLOCKS (SIZE / BLOCK)

#define want(expr) do { if (!(expr)) die("line %d: " #expr, __LINE__); } while (0)

static void __attribute__((format(printf, 1, 2), noreturn)) die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	exit(1);
}

/*
 * `size` bytes of FILL at the very end of a page: the next one cannot be touched, so what takes
 * the structure for the larger one of 64-bit programs fails with EFAULT. (Most addresses are above
 * 2 GiB: a pointer that is taken as signed fails, too.)
 */
static void *room(size_t size)
{
	size_t pages = (size + PAGE - 1) / PAGE * PAGE;
	char *start = mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	want(start != MAP_FAILED);
	want(!mprotect(start + pages, PAGE, PROT_NONE));
	memset(start, FILL, pages);
	return start + pages - size;
}

/* Whether all of these bytes are as room() made them. */
static int filled(const void *from, const void *to)
{
	const unsigned char *at = from;

	while (at != (const unsigned char *)to)
		if (*at++ != FILL)
			return 0;
	return 1;
}

/* Whether nothing was written before what room() gave. */
static int alone(const void *at)
{
	return filled((const void *)((unsigned long)at & -PAGE), at);
}

static void on_alarm(int number)
{
	(void)number;
}
