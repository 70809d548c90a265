/*
 * A preforking server in small: shared memory of several kinds, and workers that copy.
 *
 * Prints "ready" and waits.  record.py shows the machine with it for the pages of swap, shm,
 * ps and sharing.
 */
#include "memory.h"

#include <signal.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/shm.h>

#define WORKERS 3

/* A session store that all workers map; a part of it has not been used for long. */
static void make_sessions(void)
{
	int fd = memfd_create("sessions", MFD_CLOEXEC);
	char *memory;

	check(fd >= 0 && ftruncate(fd, 12 * MIB) == 0, "memfd");
	memory = map(12 * MIB, MAP_SHARED, fd);
	fill(memory, 10 * MIB);
	advise(memory + 2 * MIB, 5 * MIB, MADV_PAGEOUT);
}

/* A file on a tmpfs that nobody has open any more. */
static void make_upload(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char *memory;

	check(fd >= 0 && ftruncate(fd, 6 * MIB) == 0, path);
	memory = map(6 * MIB, MAP_SHARED, fd);
	fill(memory, 6 * MIB);
	advise(memory, 6 * MIB, MADV_PAGEOUT);
	munmap(memory, 6 * MIB);
	close(fd);
}

/* A segment that a program which crashed has left behind. */
static void make_segment(void)
{
	int id = shmget(IPC_PRIVATE, 3 * MIB, 0600);
	char *memory;

	check(id >= 0, "shmget");
	memory = shmat(id, NULL, 0);
	check(memory != (void *)-1, "shmat");
	fill(memory, 3 * MIB);
	advise(memory, 2 * MIB, MADV_PAGEOUT);
	shmdt(memory);
}

int main(int argc, char **argv)
{
	char *heap;

	check(argc == 2, "usage: workers FILE-ON-A-TMPFS");
	make_sessions();
	make_upload(argv[1]);
	make_segment();
	/* What was loaded before the fork, in part not used since. */
	heap = map(32 * MIB, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	fill(heap, 32 * MIB);
	advise(heap + 20 * MIB, 8 * MIB, MADV_PAGEOUT);
	for (int number = 1; number <= WORKERS; number++) {
		int ready[2];
		char byte;

		check(pipe(ready) == 0, "pipe");
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			fill(heap, number * 2 * MIB);
			check(write(ready[1], "", 1) == 1, "write");
			pause();
		}
		close(ready[1]);
		check(read(ready[0], &byte, 1) == 1, "a worker");
		close(ready[0]);
	}
	puts("ready");
	fflush(stdout);
	pause();
	return 0;
}
