/*
 * What the examples have in common: memory that is mapped, filled and advised, or exit.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB (1L << 20)
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static void check(int is_good, const char *what)
{
	if (!is_good) {
		perror(what);
		exit(1);
	}
}

static char *map(long size, int flags, int fd)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	check(memory != MAP_FAILED, "mmap");
	return memory;
}

static void fill(char *memory, long size)
{
	for (long at = 0; at < size; at += 8)
		*(long *)(memory + at) = at * 2654435761L + (long)memory;
}

static void advise(char *memory, long size, int advice)
{
	check(madvise(memory, size, advice) == 0, "madvise");
}
