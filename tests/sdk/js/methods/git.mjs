// Every method of `git`, with a bare repository as the remote.
import assert from 'node:assert/strict'
import { e2b, sandbox, scenario, sh } from './sdk.mjs'

const { GitUpstreamError, InvalidArgumentError } = e2b
const git = sandbox.git
const WHO = { authorName: 'A U Thor', authorEmail: 'author@example.test' }

async function repository(path, files = { a: 'one\n' }) {
  await git.init(path, { initialBranch: 'main' })
  for (const [name, text] of Object.entries(files)) await sandbox.files.write(`${path}/${name}`, text)
  await git.add(path)
  await git.commit(path, 'first', WHO)
}

scenario('a repository from nothing to a commit', async (place) => {
  const path = `${place}/tree`
  await git.init('tree', { initialBranch: 'trunk', cwd: place, user: 'user' })
  await sandbox.files.write(`${path}/žluť a.txt`, 'one\n')
  await sandbox.files.write(`${path}/b.txt`, 'two\n')
  const status = await git.status(path)
  assert.deepEqual([status.currentBranch, status.detached, status.isClean, status.hasUntracked], ['trunk', false, false, true])
  await git.add(path, { files: ['b.txt'] })
  const found = (await git.status(path)).fileStatus.map((file) => [file.status, file.staged])
  assert.deepEqual(found.sort(), [['added', true], ['untracked', false]])
  await git.add(path, { all: false })
  await git.commit(path, 'it\'s the "first" 🐎', WHO)
  assert((await git.status(path)).isClean)
  await git.commit(path, 'empty', { allowEmpty: true, envs: { GIT_AUTHOR_NAME: 'Env' }, ...WHO })
  assert.equal(await sh('git log --format=%an,%s', { cwd: path }), 'Env,empty\nA U Thor,it\'s the "first" 🐎\n')
})

scenario('branches', async (place) => {
  await repository(place)
  await git.createBranch(place, 'feature/one')
  const { branches, currentBranch } = await git.branches(place)
  assert.deepEqual([branches.sort(), currentBranch], [['feature/one', 'main'], 'feature/one'])
  await git.commit(place, 'ahead', { allowEmpty: true, ...WHO })
  await git.checkoutBranch(place, 'main')
  await assert.rejects(git.deleteBranch(place, 'feature/one'))
  await git.deleteBranch(place, 'feature/one', { force: true })
  assert.deepEqual((await git.branches(place)).branches, ['main'])
})

scenario('reset and restore', async (place) => {
  await repository(place, { a: 'one\n', b: 'one\n' })
  await sandbox.files.write(`${place}/a`, 'two\n')
  await sandbox.files.write(`${place}/b`, 'two\n')
  await git.add(place)
  await git.reset(place, { paths: ['a'] })
  const staged = Object.fromEntries((await git.status(place)).fileStatus.map((file) => [file.name, file.staged]))
  assert.deepEqual(staged, { a: false, b: true })
  await git.restore(place, { paths: ['b'], staged: true })
  await git.restore(place, { paths: ['b'] })
  assert.equal(await sandbox.files.read(`${place}/b`), 'one\n')
  await git.commit(place, 'second', { allowEmpty: true, ...WHO })
  await git.reset(place, { mode: 'hard', target: 'HEAD~1' })
  assert((await git.status(place)).isClean)
  await assert.rejects(git.restore(place, { paths: [] }), InvalidArgumentError)
})

scenario('a bare repository as the remote', async (place) => {
  const [work, bare, other] = [`${place}/tree`, `${place}/bare.git`, `${place}/other`]
  await git.init(bare, { bare: true, initialBranch: 'main' })
  await repository(work)
  await assert.rejects(git.pull(work), GitUpstreamError)
  assert.equal(await git.remoteGet(work, 'origin'), undefined)
  await git.remoteAdd(work, 'origin', '/nowhere')
  await git.remoteAdd(work, 'origin', bare, { fetch: true, overwrite: true })
  assert.equal(await git.remoteGet(work, 'origin'), bare)
  await assert.rejects(git.push(work, { setUpstream: false }), GitUpstreamError)
  await git.push(work, { remote: 'origin', branch: 'main' })
  const status = await git.status(work)
  assert.deepEqual([status.upstream, status.ahead, status.behind], ['origin/main', 0, 0])
  await git.clone(bare, { path: other, branch: 'main', depth: 1 })
  await sandbox.files.write(`${other}/a`, 'two\n')
  await git.add(other)
  await git.commit(other, 'second', WHO)
  assert.equal((await git.status(other)).ahead, 1)
  await git.push(other)
  await git.pull(work, { remote: 'origin', branch: 'main' })
  assert.equal(await sandbox.files.read(`${work}/a`), 'two\n')
})

scenario('configuration and credentials', async (place) => {
  const home = { envs: { HOME: place } }
  await git.init(place)
  assert.equal(await git.getConfig('pull.rebase', home), undefined)
  await git.setConfig('pull.rebase', 'false', home)
  assert.equal(await git.getConfig('pull.rebase', { scope: 'global', ...home }), 'false')
  await git.setConfig('pull.rebase', 'true', { scope: 'local', path: place, ...home })
  assert.equal(await git.getConfig('pull.rebase', { scope: 'local', path: place, ...home }), 'true')
  await git.configureUser('Me Myself', 'me@example.test', home)
  assert.equal(await git.getConfig('user.email', home), 'me@example.test')
  await git.dangerouslyAuthenticate({ username: 'me', password: 'pass-word', host: 'git.example.test', ...home })
  assert.equal(await sandbox.files.read(`${place}/.git-credentials`), 'https://me:pass-word@git.example.test\n')
})
