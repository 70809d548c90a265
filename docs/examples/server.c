/*
 * A server in small: memory of the kinds that real ones have, in known states.
 *
 * Prints "ready" and waits.  record.py maps it for the picture in README.md.
 */
#include "memory.h"

/* Sessions: private memory, some of it idle for long, with a guard at its end. */
static void make_sessions(void)
{
	char *memory = map(24 * MIB, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	fill(memory, 14 * MIB);
	advise(memory + 4 * MIB, 6 * MIB, MADV_PAGEOUT);
	advise(memory + 23 * MIB, MIB, MADV_GUARD_INSTALL);
}

/* Shared buffers: in use, swapped out, and in RAM without being mapped here any more. */
static void make_buffers(void)
{
	char *memory = map(64 * MIB, MAP_SHARED | MAP_ANONYMOUS, -1);

	fill(memory, 40 * MIB);
	advise(memory + 24 * MIB, 16 * MIB, MADV_PAGEOUT);
	advise(memory + 16 * MIB, 8 * MIB, MADV_DONTNEED);
}

/* A cache in a memfd, whose second half is set aside but was never written. */
static void make_cache(void)
{
	int fd = memfd_create("cache", MFD_CLOEXEC);
	char *memory;

	check(fd >= 0 && fallocate(fd, 0, 0, 16 * MIB) == 0, "memfd");
	memory = map(16 * MIB, MAP_SHARED, fd);
	fill(memory, 8 * MIB);
	advise(memory, 3 * MIB, MADV_PAGEOUT);
}

/* A table on disk, of which only parts were ever read. */
static void make_table(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char *memory;
	volatile char sum = 0;

	check(fd >= 0, path);
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	memory = mmap(NULL, 12 * MIB, PROT_READ, MAP_SHARED, fd, 0);
	check(memory != MAP_FAILED, "mmap");
	advise(memory, 12 * MIB, MADV_RANDOM);
	for (long at = 2 * MIB; at < 5 * MIB; at += 4096)
		sum += memory[at];
	advise(memory + 4 * MIB, MIB, MADV_DONTNEED);
}

int main(int argc, char **argv)
{
	check(argc == 2, "usage: server TABLE");
	make_sessions();
	make_buffers();
	make_cache();
	make_table(argv[1]);
	puts("ready");
	fflush(stdout);
	pause();
	return 0;
}
