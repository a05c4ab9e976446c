/* Says as whom it runs: installed setuid, that tells whether it may become another. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	printf("Effective uid: %d\n", geteuid());
	return 0;
}
