# The code of a trampoline (see trampoline.go, which holds the same bytes; a
# test assembles this file and compares). It lies directly before its table.
#
# A table entry is ten 64-bit words: number and six arguments of a system call,
# the only result that counts as done, address and length of what to say if it
# is another one. A negative length: any result will do. A negative number ends
# the table; its arguments are the guest's stack pointer, first argument and
# entry point.
	.text
	.globl	_start
_start:
	leaq	table(%rip), %rbx
next:
	movq	(%rbx), %rax
	testq	%rax, %rax
	js	launch
	movq	8(%rbx), %rdi
	movq	16(%rbx), %rsi
	movq	24(%rbx), %rdx
	movq	32(%rbx), %r10
	movq	40(%rbx), %r8
	movq	48(%rbx), %r9
	syscall
	cmpq	%rax, 56(%rbx)
	je	done
	cmpq	$0, 72(%rbx)
	jge	failed
done:
	addq	$80, %rbx
	jmp	next

failed:					# say it, with the errno in three digits
	movl	%eax, %r12d
	negl	%r12d
	movq	72(%rbx), %rdx
	testq	%rdx, %rdx
	jz	quit
	movq	64(%rbx), %rsi
	movl	$2, %edi
	movl	$1, %eax		# write
	syscall
	movl	%r12d, %eax
	movl	$10, %ecx
	movl	$0x0a303030, %esi	# "000\n"
	xorl	%edx, %edx
	divl	%ecx
	shll	$16, %edx
	addl	%edx, %esi
	xorl	%edx, %edx
	divl	%ecx
	shll	$8, %edx
	addl	%edx, %esi
	addl	%eax, %esi
	pushq	%rsi
	movq	%rsp, %rsi
	movl	$4, %edx
	movl	$2, %edi
	movl	$1, %eax		# write
	syscall
quit:
	movl	$1, %edi
	movl	$231, %eax		# exit_group
	syscall
	hlt

launch:					# leave nothing of ours in a register
	movq	8(%rbx), %rsp
	movq	16(%rbx), %rdi
	movq	24(%rbx), %rax
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%esi, %esi
	xorl	%ebp, %ebp
	xorl	%r8d, %r8d
	xorl	%r9d, %r9d
	xorl	%r10d, %r10d
	xorl	%r11d, %r11d
	xorl	%r12d, %r12d
	jmp	*%rax
	.balign	8, 0xcc
table:
