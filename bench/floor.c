/*
 * The floor: the kernel reads that a page map needs, and nothing else.
 *
 * Nothing is decoded or kept, so no reader of the same files in the same pieces, on one
 * thread, can be faster.  The peers of the benchmarks (smaps, one PAGEMAP_SCAN over
 * everything) are read here too, so that Python is not in their time.
 *
 *     floor PID STEP...        one line on stdin = one run = one line of JSON
 *
 *     pagemap:START-STOP              /proc/PID/pagemap of these addresses
 *     object:VMA_START-VMA_STOP:FIRST-LAST
 *                                     SEEK_DATA/SEEK_HOLE, then mincore on a mapping of our
 *                                     own, of these byte offsets of the object that the
 *                                     mapping at VMA_START-VMA_STOP shows
 *     smaps                           /proc/PID/smaps
 *     smaps:OTHER                     that of another process
 *     scan:START-STOP                 one PAGEMAP_SCAN ioctl over all of it
 *
 * Addresses and offsets are hexadecimal.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PIECE_BYTES 65536
#define SCAN_REGIONS (1 << 20)

/* PAGEMAP_SCAN, since v6.7; spelled out here since older headers lack it. */
struct region {
	uint64_t start, stop, categories;
};

struct scan_arg {
	uint64_t size, flags, start, stop, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define SCAN_IOCTL _IOWR('f', 16, struct scan_arg)
#define SCAN_PRESENT_SWAPPED ((1 << 3) | (1 << 4))
#define SCAN_ALL 0x7f

static unsigned char piece[PIECE_BYTES];
static long page_size_bytes;

static void die(const char *what)
{
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t read_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + now.tv_nsec;
}

static int open_proc(const char *pid, const char *name)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "/proc/%s/%s", pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die(path);
	return fd;
}

static void read_pagemap(const char *pid, uint64_t start, uint64_t stop)
{
	uint64_t at = start / page_size_bytes * 8, end = stop / page_size_bytes * 8;
	int fd = open_proc(pid, "pagemap");

	while (at < end) {
		size_t want = end - at < PIECE_BYTES ? end - at : PIECE_BYTES;
		ssize_t got = pread(fd, piece, want, at);

		if (got <= 0)
			die("pagemap");
		at += got;
	}
	close(fd);
}

static void walk_extents(int fd, off_t first, off_t last)
{
	off_t at = first;

	while (at < last) {
		at = lseek(fd, at, SEEK_DATA);
		if (at < 0 && errno != ENXIO)
			die("SEEK_DATA");
		if (at < 0 || at >= last)
			return;
		at = lseek(fd, at, SEEK_HOLE);
		if (at < 0)
			die("SEEK_HOLE");
	}
}

static void read_residency(int fd, off_t first, off_t last)
{
	size_t size = last - first, step = (size_t)PIECE_BYTES * page_size_bytes;
	char *memory = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, first);

	if (memory == MAP_FAILED)
		die("mmap");
	for (size_t at = 0; at < size; at += step)
		if (mincore(memory + at, size - at < step ? size - at : step, piece))
			die("mincore");
	munmap(memory, size);
}

static void read_object(const char *pid, const char *vma, off_t first, off_t last)
{
	char name[128];
	int fd;

	snprintf(name, sizeof(name), "map_files/%s", vma);
	fd = open_proc(pid, name);
	walk_extents(fd, first, last);
	read_residency(fd, first, last);
	close(fd);
}

static void read_smaps(const char *pid)
{
	int fd = open_proc(pid, "smaps");
	ssize_t got;

	while ((got = read(fd, piece, PIECE_BYTES)) > 0)
		;
	if (got < 0)
		die("smaps");
	close(fd);
}

static void scan_whole(const char *pid, uint64_t start, uint64_t stop)
{
	static struct region *regions;
	int fd = open_proc(pid, "pagemap");

	if (!regions)
		regions = calloc(SCAN_REGIONS, sizeof(*regions));
	while (start < stop) {
		struct scan_arg arg = {
			.size = sizeof(arg), .start = start, .stop = stop,
			.vec = (uintptr_t)regions, .vec_len = SCAN_REGIONS,
			.category_anyof_mask = SCAN_PRESENT_SWAPPED, .return_mask = SCAN_ALL,
		};

		if (ioctl(fd, SCAN_IOCTL, &arg) < 0)
			die("PAGEMAP_SCAN");
		start = arg.walk_end;
	}
	close(fd);
}

static void run_step(const char *pid, const char *step)
{
	unsigned long long a, b, first, last;
	char vma[64];

	if (sscanf(step, "pagemap:%llx-%llx", &a, &b) == 2)
		read_pagemap(pid, a, b);
	else if (sscanf(step, "object:%60[0-9a-f-]:%llx-%llx", vma, &first, &last) == 3)
		read_object(pid, vma, first, last);
	else if (sscanf(step, "scan:%llx-%llx", &a, &b) == 2)
		scan_whole(pid, a, b);
	else if (!strcmp(step, "smaps"))
		read_smaps(pid);
	else if (!strncmp(step, "smaps:", 6))
		read_smaps(step + 6);
	else {
		errno = EINVAL;
		die(step);
	}
}

int main(int argc, char **argv)
{
	char line[64];

	if (argc < 3) {
		fprintf(stderr, "usage: floor PID STEP...\n");
		return 2;
	}
	page_size_bytes = sysconf(_SC_PAGESIZE);
	memset(piece, 1, sizeof(piece));
	puts("{}");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		uint64_t began = read_ns(CLOCK_MONOTONIC);
		uint64_t cpu_began = read_ns(CLOCK_PROCESS_CPUTIME_ID);

		for (int i = 2; i < argc; i++)
			run_step(argv[1], argv[i]);
		printf("{\"ns\": %llu, \"cpu_ns\": %llu}\n",
		       (unsigned long long)(read_ns(CLOCK_MONOTONIC) - began),
		       (unsigned long long)(read_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_began));
		fflush(stdout);
	}
	return 0;
}
